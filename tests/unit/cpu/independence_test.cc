// One row's result depends on that row alone: not on the threads, not on the rows around it, and not on
// the instruction set where every product is exact.
#include <gtest/gtest.h>

#include "backends/cpu/kernels.h"
#include "formats/quantise.h"
#include "unit/cpu/make_weight.h"

namespace dsv4 {
namespace {

using tests::Machine;
using tests::Published;

const WeightFormat kFormats[] = {WeightFormat::kBf16, WeightFormat::kFp8Tile128, WeightFormat::kMxfp4,
                                 WeightFormat::kNvfp4, WeightFormat::kF32};

std::vector<float> run_linear(Machine& m, const Published& w, const std::vector<bf16>& x, int64_t T) {
  auto packed = m.backend->pack(w.request);
  EXPECT_TRUE(packed.ok());
  std::vector<float> y(static_cast<size_t>(T * w.request.rows));
  const Status status = m.backend->ops().linear(m.context, {.x = x.data(), .w = packed->view(), .y = y.data(),
                                                            .y_dtype = DType::kF32, .T = T});
  EXPECT_TRUE(status.ok()) << status.message();
  return y;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

TEST(Independence, LinearOfThreads) {
  for (WeightFormat format : kFormats) {
    const Published w(WeightRole::kLinear, format, 200, 416, 1, 1, 3);
    // 130 rows are cut into two parts, and 269 into four, whose last piece has one panel.
    for (int64_t T : {1, 5, 30, 130, 269}) {
      const std::vector<bf16> x = tests::random_bf16(static_cast<size_t>(T * 416), 5);
      Machine one(tests::cpu(1));
      const std::vector<float> expected = run_linear(one, w, x, T);
      for (int threads : {2, 3, 8}) {
        Machine more(tests::cpu(threads));
        EXPECT_TRUE(same_bits(run_linear(more, w, x, T), expected)) << threads << " threads, T=" << T;
      }
    }
  }
}

TEST(Independence, LinearOfTheBatch) {
  constexpr int64_t kRows = 300, kN = 72, kK = 600;  // more rows than a piece, and blocks of K up to a partial one
  for (WeightFormat format : kFormats) {
    const Published w(WeightRole::kLinear, format, kN, kK, 1, 1, 11);
    const std::vector<bf16> x = tests::random_bf16(kRows * kK, 13);
    Machine m(tests::cpu(2));
    const std::vector<float> all = run_linear(m, w, x, kRows);
    for (int64_t t : {0, 1, 6, 11, 12, 263, 264, 299}) {
      const std::vector<bf16> row(x.begin() + t * kK, x.begin() + (t + 1) * kK);
      const std::vector<float> alone(all.begin() + t * kN, all.begin() + (t + 1) * kN);
      EXPECT_TRUE(same_bits(run_linear(m, w, row, 1), alone)) << format_info(format).name << " row " << t;
    }
    // Few rows go several ways, by their number, and more make panels of different heights.
    for (int64_t T = 2; T <= 31; ++T) {
      const std::vector<bf16> few(x.begin(), x.begin() + T * kK);
      const std::vector<float> first(all.begin(), all.begin() + T * kN);
      EXPECT_TRUE(same_bits(run_linear(m, w, few, T), first)) << format_info(format).name << ", " << T << " rows";
    }
  }
}

TEST(Independence, LinearOfTheInstructionSet) {
  for (WeightFormat format : kFormats) {
    if (format == WeightFormat::kF32) continue;  // its products are not exact
    const Published w(WeightRole::kLinear, format, 40, 384, 1, 1, 17);
    for (int64_t T : {1, 14}) {
      const std::vector<bf16> x = tests::random_bf16(static_cast<size_t>(T * 384), 19);
      Machine best(tests::cpu(1));
      const std::vector<float> expected = run_linear(best, w, x, T);
      for (const char* isa : {"avx512_bf16", "avx512", "avx2", "neon", "scalar"}) {
        std::unique_ptr<Backend> backend = tests::cpu(1, isa);
        if (!backend) continue;  // not of this machine
        Machine other(std::move(backend));
        const std::vector<float> y = run_linear(other, w, x, T);
        if (format != WeightFormat::kNvfp4) {
          EXPECT_TRUE(same_bits(y, expected)) << isa << " " << format_info(format).name;
          continue;
        }
        // A scale of NVFP4 is no power of two, so fusing its multiply-add matters in the last bit.
        for (size_t i = 0; i < y.size(); ++i) EXPECT_NEAR(y[i], expected[i], 1e-5f * (1.0f + std::abs(expected[i])));
      }
    }
  }
}

// Scales that may be folded into the weights of a batch, up to the last such, and scales that may not.
TEST(Independence, LinearOfTheBatchWithScalesFarFromOne) {
  constexpr int64_t kRows = 15, kN = 72, kK = 416;
  const uint8_t folding[] = {41, 127, 227}, others[] = {0, 1, 40, 120, 228};
  for (WeightFormat format : {WeightFormat::kFp8Tile128, WeightFormat::kMxfp4}) {
    for (bool fold : {true, false}) {
      Published w(WeightRole::kLinear, format, kN, kK, 1, 1, 41);
      for (size_t i = 0; i < w.scales[0].size(); ++i) w.scales[0][i] = fold ? folding[i % 3] : others[i % 5];
      const std::vector<bf16> x = tests::random_bf16(kRows * kK, 43);
      Machine m(tests::cpu(2));
      const std::vector<float> all = run_linear(m, w, x, kRows);
      if (std::unique_ptr<Backend> scalar = tests::cpu(1, "scalar")) {  // not where NEON is always there
        Machine portable(std::move(scalar));
        EXPECT_TRUE(same_bits(run_linear(portable, w, x, kRows), all)) << format_info(format).name << " " << fold;
      }
      for (int64_t t = 0; t < kRows; ++t) {
        const std::vector<bf16> row(x.begin() + t * kK, x.begin() + (t + 1) * kK);
        const std::vector<float> alone(all.begin() + t * kN, all.begin() + (t + 1) * kN);
        EXPECT_TRUE(same_bits(run_linear(m, w, row, 1), alone)) << format_info(format).name << " row " << t;
      }
    }
  }
}

// The same values in both FP4 formats: the sums have the same order, so the bits agree.
TEST(Independence, LosslessCastOfFp4) {
  constexpr int64_t kN = 32, kK = 256;
  Published mx(WeightRole::kLinear, WeightFormat::kMxfp4, kN, kK, 1, 1, 23);
  Published nv(WeightRole::kLinear, WeightFormat::kNvfp4, kN, kK, 1, 1, 23);
  nv.weights[0] = mx.weights[0];
  for (int64_t i = 0; i < kN * kK / 16; ++i) {
    // UE8M0 byte b is 2^(b-127); the E4M3 code of 2^e is (e + 7) << 3, times a global 2^-4.
    const int exponent = mx.scales[0][static_cast<size_t>(i / 2)] - 127 + 4;
    nv.scales[0][static_cast<size_t>(i)] = static_cast<uint8_t>((exponent + 7) << 3);
  }
  nv.request.sources[0].weight.data = nv.weights[0].data();
  nv.request.sources[0].scale.data = nv.scales[0].data();
  nv.request.sources[0].global_scale = 0x1p-4f;
  Machine m(tests::cpu(2));
  for (int64_t T : {1, 3}) {
    const std::vector<bf16> x = tests::random_bf16(static_cast<size_t>(T * kK), 29);
    EXPECT_TRUE(same_bits(run_linear(m, mx, x, T), run_linear(m, nv, x, T)));
  }
}

// Three experts and a shared one; tokens differ in their experts.
std::vector<bf16> run_moe(Machine& m, const std::vector<bf16>& x, const std::vector<int32_t>& ids,
                          const std::vector<float>& weights, int64_t T) {
  constexpr int64_t kD = 128, kI = 48, kE = 3, kPer = 2;
  const Published w1(WeightRole::kExperts, WeightFormat::kMxfp4, kI, kD, kE, 1, 31);
  const Published w3(WeightRole::kExperts, WeightFormat::kMxfp4, kI, kD, kE, 1, 32);
  const Published w2(WeightRole::kExperts, WeightFormat::kMxfp4, kD, kI, kE, 1, 33);
  const Published s1(WeightRole::kLinear, WeightFormat::kFp8Tile128, kI, kD, 1, 1, 34);
  const Published s3(WeightRole::kLinear, WeightFormat::kFp8Tile128, kI, kD, 1, 1, 35);
  const Published s2(WeightRole::kLinear, WeightFormat::kFp8Tile128, kD, kI, 1, 1, 36);
  std::vector<PackedWeight> packed;
  for (const Published* p : {&w1, &w3, &w2, &s1, &s3, &s2}) packed.push_back(*m.backend->pack(p->request));
  std::vector<bf16> y(static_cast<size_t>(T * kD));
  const Status status = m.backend->ops().moe(
      m.context, {.x = x.data(), .ids = ids.data(), .weights = weights.data(), .w1 = packed[0].view(),
                  .w3 = packed[1].view(), .w2 = packed[2].view(), .shared_w1 = packed[3].view(),
                  .shared_w3 = packed[4].view(), .shared_w2 = packed[5].view(), .limit = 7.0f, .y = y.data(),
                  .T = T, .D = kD, .I = kI, .E = kE, .k = kPer, .shared_I = kI});
  EXPECT_TRUE(status.ok()) << status.message();
  return y;
}

TEST(Independence, MoeOfThreadsAndBatch) {
  constexpr int64_t kT = 29, kD = 128;
  const std::vector<bf16> x = tests::random_bf16(kT * kD, 37);
  std::vector<int32_t> ids;
  std::vector<float> weights;
  for (int32_t t = 0; t < kT; ++t) {
    ids.insert(ids.end(), {t % 3, (t + 1 + t / 7 % 2) % 3});
    weights.insert(weights.end(), {0.6f, 0.4f});
  }
  Machine one(tests::cpu(1));
  const std::vector<bf16> expected = run_moe(one, x, ids, weights, kT);
  for (int threads : {2, 3}) {
    Machine more(tests::cpu(threads));
    const std::vector<bf16> y = run_moe(more, x, ids, weights, kT);
    EXPECT_EQ(memcmp(y.data(), expected.data(), y.size() * sizeof(bf16)), 0) << threads << " threads";
  }
  for (int64_t t : {0, 13, 28}) {
    const std::vector<bf16> y = run_moe(one, {x.begin() + t * kD, x.begin() + (t + 1) * kD},
                                        {ids.begin() + 2 * t, ids.begin() + 2 * t + 2}, {0.6f, 0.4f}, 1);
    EXPECT_EQ(memcmp(y.data(), expected.data() + t * kD, kD * sizeof(bf16)), 0) << "row " << t;
  }
}

// Every BF16 value in groups of several ranges, whatever way a group goes: by act8's definition.
TEST(Act8, ExpandsToWhatItsCodesMean) {
  for (const char* isa : {"avx512_bf16", "avx512", "avx2", "neon", "scalar"}) {
    const Result<cpu::Kernels> kernels = cpu::select_kernels(isa);
    if (!kernels.ok()) continue;  // not of this machine
    const int64_t per_unit = kernels->linear.unit_values;
    for (uint32_t most : {0x0000u, 0x3f00u, 0x3f80u, 0x4060u, 0x43e0u, 0x43e1u, 0x7f7fu, 0x7f80u}) {
      for (uint32_t first = 0; first < 0x10000; first += kAct8Group - 1) {
        bf16 x[kAct8Group] = {bf16{static_cast<uint16_t>(most)}};
        for (uint32_t i = 1; i < kAct8Group; ++i) {
          // Finite values are held to the group's range, so that many groups have that one.
          const uint16_t bits = static_cast<uint16_t>(first + i - 1);
          const bool larger = (bits & 0x7fffu) > most && (bits & 0x7fffu) < 0x7f80 && most > 0;
          x[i].bits = larger ? static_cast<uint16_t>(most - i) : bits;
        }
        uint8_t codes[kAct8Group];
        const float scale = ue8m0_to_float(act8_quantise(x, kAct8Group, codes));
        float units[kAct8Group];
        kernels->linear.expand_act8(x, kAct8Group, units);
        for (int64_t i = 0; i < kAct8Group; ++i) {
          const uint32_t unit = float_to_bits(units[i / per_unit]);
          const float found = per_unit == 1 ? units[i] : bits_to_float(i % 2 == 0 ? unit & 0xffff0000u : unit << 16);
          const float expected = e4m3_to_float(codes[i]) * scale;
          ASSERT_TRUE(std::isnan(expected) ? std::isnan(found) : float_to_bits(found) == float_to_bits(expected))
              << isa << " " << to_float(x[i]) << " of " << to_float(x[0]) << ": " << found << ", not " << expected;
        }
      }
    }
  }
}

TEST(Isa, UnknownNamesAreRefusedWithTheKnownOnes) {
  auto backend = make_cpu_backend({.isa = "mmx"});
  ASSERT_FALSE(backend.ok());
  EXPECT_NE(backend.status().message().find(cpu::isa_names()), std::string::npos) << backend.status().message();
}

// Files that are not compiled for BF16 pairs must not fall back to portable code where those are chosen.
TEST(Isa, Bf16KeepsTheVectorCodeOfAvx512) {
  const auto pairs = cpu::select_kernels("avx512_bf16"), plain = cpu::select_kernels("avx512");
  if (!pairs.ok()) GTEST_SKIP() << "no AVX512_BF16 here";
  EXPECT_EQ(pairs->rows.dots, plain->rows.dots);
  EXPECT_EQ(pairs->attention.scores, plain->attention.scores);
  EXPECT_NE(pairs->linear.multiply, plain->linear.multiply);
}

}  // namespace
}  // namespace dsv4
