#include "convert/random_tensor.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "formats/bf16.h"
#include "formats/e4m3.h"

namespace dsv4 {
namespace {

// One 64-bit word per counter: a bijective mix with full avalanche.
inline uint64_t word_at(uint64_t key, uint64_t counter) {
  uint64_t x = key + counter * 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 32)) * 0xd6e8feb86659fd93u;
  x = (x ^ (x >> 32)) * 0xd6e8feb86659fd93u;
  return x ^ (x >> 32);
}

uint64_t key_of(uint64_t seed, std::string_view name) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (const char c : name) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3u;
  return word_at(hash, seed + 1);
}

// Deviation of a uniform choice among the E2M1 values, and of a scale that is 2^-1, 1, 1 or 2.
const double kFp4Deviation = std::sqrt(68.5 / 8.0);
const double kJitterDeviation = std::sqrt((0.25 + 1.0 + 1.0 + 4.0) / 4.0);

// Deviation of a tensor that is not a quantised linear map.
void set_moments(std::string_view name, const TensorInfo& info, RandomTensor& t) {
  const auto ends = [&](std::string_view tail) { return name.ends_with(tail); };
  const double K = static_cast<double>(info.cols());
  if (ends("norm.weight")) {
    t.mean = 1.0;
    t.sigma = 0.1;
  } else if (ends("_scale")) {  // of mHC
    t.mean = 1.0;
    t.sigma = 0.25;
  } else if (ends("_fn")) {
    t.sigma = 1.6 / std::sqrt(K);
  } else if (ends("_base") || ends("attn_sink") || ends("embed.weight")) {
    t.sigma = 1.0;
  } else if (ends("compressor.ape")) {
    t.sigma = 0.5;
  } else if (ends("gate.bias")) {
    t.sigma = 0.2;
  } else if (ends("ffn.gate.weight") || ends("weights_proj.weight")) {
    t.sigma = 4.0 / std::sqrt(K);
  } else if (ends("head.weight")) {
    t.sigma = 1.5 / std::sqrt(K);
  } else {
    t.sigma = 1.0 / std::sqrt(K);
  }
}

// 16 random bits per element, four elements per word.
template <class T, class Convert>
void fill_normal(const RandomTensor& t, const NormalTable& normal, uint64_t begin, uint64_t count,
                 void* out, Convert convert) {
  const float mean = static_cast<float>(t.mean), sigma = static_cast<float>(t.sigma);
  auto* bytes = static_cast<uint8_t*>(out);
  for (uint64_t i = 0; i < count; i += 4) {
    const uint64_t word = word_at(t.key, (begin + i) / 4);
    T values[4];
    for (unsigned j = 0; j < 4; ++j) {
      values[j] = convert(mean + sigma * normal[static_cast<uint16_t>(word >> (16 * j))]);
    }
    std::memcpy(bytes + i * sizeof(T), values, std::min<uint64_t>(4, count - i) * sizeof(T));
  }
}

// One random byte per stored byte, eight per word, through `map`.
template <class Map>
void fill_bytes(const RandomTensor& t, uint64_t begin, uint64_t count, void* out, Map map) {
  auto* bytes = static_cast<uint8_t*>(out);
  for (uint64_t i = 0; i < count; i += 8) {
    const uint64_t word = word_at(t.key, (begin + i) / 8);
    uint8_t values[8];
    for (unsigned j = 0; j < 8; ++j) values[j] = map(static_cast<uint8_t>(word >> (8 * j)));
    std::memcpy(bytes + i, values, std::min<uint64_t>(8, count - i));
  }
}

// The random bytes themselves: nine tenths of a checkpoint, so no detour over single bytes.
void fill_words(const RandomTensor& t, uint64_t begin, uint64_t count, void* out) {
  auto* bytes = static_cast<uint8_t*>(out);
  const uint64_t first = begin / 8, words = count / 8;
  for (uint64_t i = 0; i < words; ++i) {
    const uint64_t word = word_at(t.key, first + i);
    std::memcpy(bytes + 8 * i, &word, 8);
  }
  const uint64_t last = word_at(t.key, first + words);
  std::memcpy(bytes + 8 * words, &last, count % 8);
}

// k distinct ids of E, uniform over all sets (Floyd's sampling).
void draw_row(const RandomTensor& t, uint64_t row, std::vector<int64_t>& ids) {
  const auto k = static_cast<uint64_t>(t.per_row), E = static_cast<uint64_t>(t.experts);
  ids.clear();
  for (uint64_t j = E - k; j < E; ++j) {
    const uint64_t random = word_at(t.key, row * k + (j - (E - k))) >> 11;
    const auto pick = static_cast<int64_t>(random % (j + 1));
    const bool taken = std::find(ids.begin(), ids.end(), pick) != ids.end();
    ids.push_back(taken ? static_cast<int64_t>(j) : pick);
  }
}

void fill_expert_ids(const RandomTensor& t, uint64_t begin, uint64_t count, void* out) {
  auto* bytes = static_cast<uint8_t*>(out);
  const auto k = static_cast<uint64_t>(t.per_row);
  std::vector<int64_t> ids;
  for (uint64_t i = 0; i < count; ++i) {
    const uint64_t at = begin + i;
    if (i == 0 || at % k == 0) draw_row(t, at / k, ids);
    std::memcpy(bytes + i * sizeof(int64_t), &ids[at % k], sizeof(int64_t));
  }
}

}  // namespace

NormalTable::NormalTable() : values_(65536) {
  // From the median outwards; Newton's step from the quantile before never overshoots, because the
  // distribution function is concave there.
  double z = 0.0;
  for (uint32_t i = 32768; i < 65536; ++i) {
    const double tail = (65535.5 - i) / 65536.0;
    for (int step = 0; step < 6; ++step) {
      const double density = std::exp(-0.5 * z * z) / std::sqrt(2.0 * M_PI);
      z += (0.5 * std::erfc(z / std::sqrt(2.0)) - tail) / density;
    }
    values_[i] = static_cast<float>(z);
    values_[65535 - i] = static_cast<float>(-z);
  }
}

RandomTensor plan_random(const TensorInfo& info, const TensorSpec& stored, size_t index,
                         const ModelConfig& config, uint64_t seed) {
  using Kind = RandomTensor::Kind;
  RandomTensor t;
  t.key = key_of(seed, stored.name);
  if (info.format == WeightFormat::kI32) {
    t.kind = Kind::kExpertIds;
    t.experts = config.n_routed_experts;
    t.per_row = config.num_experts_per_tok;
    return t;
  }
  if (info.format == WeightFormat::kF32 || info.format == WeightFormat::kBf16) {
    t.kind = info.format == WeightFormat::kF32 ? Kind::kNormalF32 : Kind::kNormalBf16;
    set_moments(info.name, info, t);
    return t;
  }
  // Elements times scales shall have deviation 1 / sqrt(K).
  const double wanted = 1.0 / std::sqrt(static_cast<double>(info.cols())) / kJitterDeviation;
  if (info.format == WeightFormat::kFp8Tile128) {
    // Codes with a deviation of 45 to 90 use the range of E4M3 without clipping.
    t.exponent = static_cast<int>(std::floor(std::log2(wanted / 45.0)));
    t.sigma = wanted / std::exp2(t.exponent);
    t.kind = Kind::kFp8Codes;
  } else {
    t.exponent = static_cast<int>(std::lround(std::log2(wanted / kFp4Deviation)));
    t.kind = Kind::kFp4Codes;
  }
  if (index > 0) t.kind = Kind::kScaleBytes;
  return t;
}

void fill_random(const RandomTensor& t, const NormalTable& normal, uint64_t begin, uint64_t count,
                 void* out) {
  using Kind = RandomTensor::Kind;
  switch (t.kind) {
    case Kind::kNormalF32:
      return fill_normal<float>(t, normal, begin, count, out, [](float x) { return x; });
    case Kind::kNormalBf16:
      return fill_normal<bf16>(t, normal, begin, count, out, [](float x) { return to_bf16(x); });
    case Kind::kFp8Codes: {
      std::array<uint8_t, 256> codes;
      for (uint32_t i = 0; i < 256; ++i) {
        const float z = normal[static_cast<uint16_t>(i * 256 + 128)];
        codes[i] = float_to_e4m3(static_cast<float>(t.sigma) * z);
      }
      return fill_bytes(t, begin, count, out, [&](uint8_t byte) { return codes[byte]; });
    }
    case Kind::kFp4Codes: return fill_words(t, begin, count, out);
    case Kind::kScaleBytes:
      return fill_bytes(t, begin, count, out, [&](uint8_t byte) {
        const int jitter = (byte & 3) == 0 ? -1 : (byte & 3) == 3 ? 1 : 0;
        return static_cast<uint8_t>(127 + t.exponent + jitter);
      });
    case Kind::kExpertIds: return fill_expert_ids(t, begin, count, out);
  }
}

}  // namespace dsv4
