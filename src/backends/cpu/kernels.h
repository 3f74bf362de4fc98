// What the vector code offers to the ops: plain functions, one table per instruction set, chosen once
// when the backend is made. Kernels see pointers and sizes only and know nothing of threads.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "backends/cpu/tiles.h"
#include "dsv4/status.h"
#include "formats/bf16.h"

namespace dsv4::cpu {

// Rows of activations lie in panels: rows 12p .. 12p+11 as [Kp][rows of the panel] floats, so that one
// step of k reads consecutive values. The last panel holds what is left; Kp = K rounded up to kTileK,
// filled with zeros. A single row is therefore a plain vector.
inline constexpr int64_t kPanelRows = 12;
// Rows multiplied with one decoded piece of weights, and tiles decoded together, at most.
inline constexpr int64_t kUnitRows = 22 * kPanelRows;
inline constexpr int64_t kUnitTiles = 8;
// Floats of scratch that one worker needs for `multiply`.
inline constexpr int64_t kDecodeFloats = kUnitTiles * kTileRows * (kTileK + kMaxGroups);

struct LinearKernels {
  // out[r * tiles * 16 + i] = row r of x times row i of `tiles` consecutive tiles; r < n <= kUnitRows.
  // The sums have the same order whatever n and tiles are: groups of kGroup values of K ascending,
  // each a chain of fused multiply-adds from zero, times its scale, added to the total ascending.
  void (*multiply)(const Tiles& w, int64_t tile, int64_t tiles, const float* x, int64_t n,
                   float* decoded, float* out);
  // BF16 -> act8 -> dequantised floats, or BF16 -> float; [K] -> [Kp] zero-padded.
  void (*expand_act8)(const bf16* x, int64_t K, float* out);
  void (*expand_bf16)(const bf16* x, int64_t K, float* out);
  void (*round_bf16)(const float* x, int64_t n, bf16* out);
  // h = BF16(silu(min(BF16 a, limit)) * clamp(BF16 u, +-limit) * weight)
  void (*swiglu)(const float* a, const float* u, int64_t n, float limit, float weight, bf16* h);
  // sum += BF16(x), in FP32.
  void (*add_rounded)(const float* x, int64_t n, float* sum);
};

// Everything that one instruction set offers.
struct Kernels {
  std::string_view isa;
  LinearKernels linear;
};

// `isa`: "" = the best of this machine, or a name that isa_names() lists.
Result<Kernels> select_kernels(std::string_view isa);
// The instruction sets compiled in that this machine can run, best first.
std::string isa_names();

// One per file of vector code; valid for the target that highway has chosen at the time.
LinearKernels linear_kernels();

}  // namespace dsv4::cpu
