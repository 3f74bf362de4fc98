#include "convert/nvfp4.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <unordered_map>

#include "base/str.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/writer.h"
#include "convert/output_dir.h"
#include "formats/e2m1.h"
#include "formats/e4m3.h"
#include "model/config.h"
#include "model/layer_plan.h"
#include "model/tensor_table.h"

namespace dsv4 {
namespace {

namespace fs = std::filesystem;

constexpr int kMinExponent = -9;  // 2^-9 is E4M3's smallest value, 2^8 its largest power of two
constexpr int kMaxExponent = 8;

uint8_t scale_code(uint8_t scale_byte, int m) {
  const int exponent = std::max(scale_byte - 127 - m, kMinExponent);
  return float_to_e4m3(std::ldexp(1.0f, exponent));
}

struct ByteRange {
  uint8_t min = 255, max = 0;
};
ByteRange range_of(const TensorRef& scales) {
  const auto* bytes = static_cast<const uint8_t*>(scales.data);
  ByteRange range;
  for (size_t i = 0; i < scales.bytes(); ++i) {
    range.min = std::min(range.min, bytes[i]);
    range.max = std::max(range.max, bytes[i]);
  }
  return range;
}

// "layers.3.ffn.experts.7.w1" and ".weight"
std::pair<std::string, std::string> split_name(const std::string& name) {
  const size_t dot = name.rfind('.');
  return dot == std::string::npos ? std::pair{name, std::string()}
                                  : std::pair{name.substr(0, dot), name.substr(dot)};
}

Result<std::string> read_text(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return Status(Code::kNotFound, cat(path, ": cannot be read; expected a checkpoint's file"));
  return std::string(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
}

class Converter {
 public:
  Converter(const Checkpoint& checkpoint, const TensorTable& table, const ProgressSink& progress)
      : in_(checkpoint), table_(table), progress_(progress) {}

  const Nvfp4Report& report() const { return report_; }

  // Writes the tensors of one input shard; returns what the output holds.
  Result<std::vector<TensorSpec>> convert_shard(uint32_t shard, const std::string& path) {
    matrices_.clear();
    std::vector<TensorSpec> specs;
    for (const TensorEntry& entry : in_.entries()) {
      if (entry.shard != shard) continue;
      const auto [base, suffix] = split_name(entry.name);
      const TensorInfo* info = table_.find(base + ".weight");
      const bool expert = info && info->group == TensorGroup::kExperts && !info->is_mtp;
      if (!expert) {
        specs.push_back({entry.name, entry.dtype, entry.shape});
        ++report_.kept_tensors;
      } else if (suffix == ".weight") {
        DSV4_TRY(add_matrix(base, *info));
        for (TensorSpec& t : stored_tensors(*info, WeightFormat::kNvfp4)) specs.push_back(std::move(t));
      }
    }
    DSV4_ASSIGN(SafetensorsWriter writer, SafetensorsWriter::create(path, specs));
    for (const TensorSpec& t : writer.tensors()) {
      const auto [base, suffix] = split_name(t.name);
      const auto matrix = matrices_.find(base);
      DSV4_TRY(matrix == matrices_.end() ? copy(t.name, writer)
                                         : write_part(matrix->second, suffix, writer));
      report_.payload_bytes += t.bytes();
      if (progress_) {
        progress_({"converting", static_cast<int64_t>(std::min(report_.payload_bytes, in_.data_bytes())),
                   static_cast<int64_t>(in_.data_bytes()), "bytes"});
      }
    }
    DSV4_TRY(writer.finish());
    return specs;
  }

 private:
  struct Matrix {
    TensorRef weight, scale;
    int m = 0;           // weight_scale_2 = 2^m
    uint8_t min_byte = 0;  // smallest block scale
  };

  Status add_matrix(const std::string& base, const TensorInfo& info) {
    DSV4_ASSIGN(const WeightSource source, mxfp4(info));
    const ByteRange range = range_of(source.scale);
    uint8_t max = range.max;
    // w1 and w3 are one fused product and share their global scale.
    const std::string projection = split_name(base).second;
    if (projection == ".w1" || projection == ".w3") {
      const std::string other = split_name(base).first + (projection == ".w1" ? ".w3" : ".w1");
      DSV4_ASSIGN(const WeightSource pair, mxfp4(*table_.find(other + ".weight")));
      max = std::max(max, range_of(pair.scale).max);
    }
    matrices_.emplace(base, Matrix{source.weight, source.scale, nvfp4_global_exponent(max), range.min});
    ++report_.cast_tensors;
    return {};
  }

  Result<WeightSource> mxfp4(const TensorInfo& info) {
    DSV4_ASSIGN(WeightSource source, find_weight(in_, info));
    if (source.format != WeightFormat::kMxfp4) {
      return Status(Code::kUnsupported,
                    cat(info.name, ": expected ", format_info(WeightFormat::kMxfp4).name, ", found ",
                        format_info(source.format).name, "; only MXFP4 experts can be cast"));
    }
    return source;
  }

  Status copy(const std::string& name, SafetensorsWriter& writer) {
    DSV4_ASSIGN(const TensorRef ref, in_.view(*in_.find(name)));
    DSV4_TRY(writer.append(ref.data, ref.bytes()));
    drop_pages(ref);
    return {};
  }

  Status write_part(const Matrix& matrix, const std::string& suffix, SafetensorsWriter& writer) {
    if (suffix == ".weight") return write_codes(matrix, writer);
    if (suffix == ".weight_scale") return write_scales(matrix, writer);
    // The input scale of a weights-only cast is not calibrated.
    const float value = suffix == ".input_scale" ? 1.0f : std::ldexp(1.0f, matrix.m);
    return writer.append(&value, sizeof value);
  }

  Status write_scales(const Matrix& matrix, SafetensorsWriter& writer) {
    std::array<uint8_t, 256> code;
    for (int b = 0; b < 256; ++b) {
      code[static_cast<size_t>(b)] = scale_code(static_cast<uint8_t>(b), matrix.m);
    }
    const auto* in = static_cast<const uint8_t*>(matrix.scale.data);
    std::vector<uint8_t> out(2 * matrix.scale.bytes());
    for (size_t i = 0; i < matrix.scale.bytes(); ++i) out[2 * i] = out[2 * i + 1] = code[in[i]];
    return writer.append(out.data(), out.size());
  }

  Status write_codes(const Matrix& matrix, SafetensorsWriter& writer) {
    const size_t blocks = matrix.scale.bytes();
    report_.blocks += static_cast<int64_t>(blocks);
    if (matrix.min_byte - 127 - matrix.m >= kMinExponent) {  // every block exact
      DSV4_TRY(writer.append(matrix.weight.data, matrix.weight.bytes()));
    } else {
      const auto* scales = static_cast<const uint8_t*>(matrix.scale.data);
      std::vector<uint8_t> codes(matrix.weight.bytes());
      std::memcpy(codes.data(), matrix.weight.data, codes.size());
      for (size_t i = 0; i < blocks; ++i) {
        uint8_t scale = 0;
        if (!cast_block_to_nvfp4(scales[i], matrix.m, &codes[16 * i], scale)) ++report_.rounded_blocks;
      }
      DSV4_TRY(writer.append(codes.data(), codes.size()));
    }
    drop_pages(matrix.weight);
    return {};
  }

  const Checkpoint& in_;
  const TensorTable& table_;
  const ProgressSink& progress_;
  std::unordered_map<std::string, Matrix> matrices_;  // of the current shard
  Nvfp4Report report_;
};

// Tokenizer, generation settings, licence: whatever else lies beside the weights.
Status copy_other_files(const std::string& from, OutputDir& out) {
  std::error_code error;
  for (fs::directory_iterator it(from, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    if (!it->is_regular_file(error) || it->path().extension() == ".safetensors" ||
        name == "model.safetensors.index.json" || name == "config.json" ||
        name == "hf_quant_config.json") {
      continue;
    }
    DSV4_ASSIGN(const std::string text, read_text(it->path().string()));
    DSV4_TRY(out.write(name, text));
  }
  return error ? Status(Code::kIo, cat(from, ": ", error.message())) : Status();
}

Result<Nvfp4Report> convert(const std::string& from, const std::string& to,
                            const ProgressSink& progress) {
  const std::string config_path = from + "/config.json";
  DSV4_ASSIGN(const std::string config_text, read_text(config_path));
  DSV4_ASSIGN(const ModelConfig config, parse_config(config_text, config_path));
  DSV4_ASSIGN(const std::string new_config,
              nvfp4_config_json(config_text, config_path, config.num_hidden_layers));
  DSV4_ASSIGN(const Checkpoint checkpoint, Checkpoint::open(from));
  const TensorTable table(config, make_plan(config));
  DSV4_ASSIGN(OutputDir out, OutputDir::create(to));

  Converter converter(checkpoint, table, progress);
  std::vector<std::vector<TensorSpec>> shards;
  const auto count = static_cast<uint32_t>(checkpoint.shard_count());
  for (uint32_t s = 0; s < count; ++s) {
    DSV4_ASSIGN(std::vector<TensorSpec> specs,
                converter.convert_shard(s, out.add(shard_name(s, count))));
    shards.push_back(std::move(specs));
  }
  if (count > 1) DSV4_TRY(out.write("model.safetensors.index.json", shard_index_json(shards)));
  DSV4_TRY(copy_other_files(from, out));
  DSV4_TRY(out.write("hf_quant_config.json", nvfp4_quant_config_json(config.num_hidden_layers)));
  DSV4_TRY(out.write("config.json", new_config));
  out.keep();
  return converter.report();
}

}  // namespace

int nvfp4_global_exponent(uint8_t max_scale_byte) { return max_scale_byte - 127 - kMaxExponent; }

bool cast_block_to_nvfp4(uint8_t scale_byte, int m, uint8_t codes[16], uint8_t& scale) {
  const int exponent = scale_byte - 127 - m;
  scale = scale_code(scale_byte, m);
  if (exponent >= kMinExponent) return true;
  bool exact = true;
  const auto rounded = [&](uint8_t code) {
    const float value = std::ldexp(e2m1_to_float(code), exponent - kMinExponent);
    const uint8_t nearest = float_to_e2m1(value);
    exact &= e2m1_to_float(nearest) == value;
    return nearest;
  };
  for (int i = 0; i < 16; ++i) {
    const uint8_t low = rounded(e2m1_low(codes[i])), high = rounded(e2m1_high(codes[i]));
    codes[i] = static_cast<uint8_t>(low | high << 4);
  }
  return exact;
}

Result<Nvfp4Report> convert_to_nvfp4(const std::string& from, const std::string& to,
                                     const ProgressSink& progress) {
  try {
    return convert(from, to, progress);
  } catch (const std::exception& e) {  // out of memory, file system
    return Status(Code::kResourceExhausted, cat(to, ": ", e.what()));
  }
}

}  // namespace dsv4
