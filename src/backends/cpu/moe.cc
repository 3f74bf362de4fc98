// Router and experts.
#include <algorithm>
#include <cmath>

#include "backends/cpu/multiply.h"
#include "backends/cpu/ops.h"
#include "backends/cpu/shares.h"
#include "base/str.h"

namespace dsv4::cpu {
namespace {

float softplus(float x) { return x > 20.0f ? x : std::log1p(std::exp(x)); }

// Rows of one expert: its tokens in ascending order, or all tokens for the shared expert.
struct Segment {
  const Tiles *w1, *w3, *w2;
  int64_t first = 0;   // in the arrays over assignments
  Panels x, h;         // inputs of w1 and w3, and of w2
  bf16* hidden = nullptr;  // [rows, hidden_stride]
  int64_t hidden_stride = 0;
  int64_t x_items = 0, h_items = 0;  // items of panel filling up to and including this segment
};

struct Plan {
  Segment* segments = nullptr;
  int64_t count = 0;
  int32_t* token = nullptr;  // [assignments + T]
  float* weight = nullptr;   // [assignments + T]
};

// The item'th item over all segments: which segment, and which item of it.
template <class Items>
const Segment& locate(const Plan& plan, int64_t& item, Items Segment::*total) {
  int64_t i = 0;
  while (plan.segments[i].*total <= item) ++i;
  if (i > 0) item -= plan.segments[i - 1].*total;
  return plan.segments[i];
}

Status check_inputs(const MoeArgs& a) {
  for (int64_t i = 0; i < a.T * a.k; ++i) {
    if (a.ids[i] < 0 || a.ids[i] >= a.E) {
      return Status(Code::kInvalidArgument, cat("moe: token ", i / a.k, ": expected expert ids in 0..", a.E - 1,
                                                ", found ", a.ids[i]));
    }
  }
  return {};
}

Status add_segment(const LinearKernels& kernels, Plan& plan, Workspace::Scope& scope, Segment s, int64_t rows) {
  if (takes_act8(*s.w1) != takes_act8(*s.w3)) {
    return Status(Code::kUnsupported, "moe: w1 and w3 of one expert need formats with the same input");
  }
  s.x = {.kernels = &kernels, .rows = rows, .K = s.w1->cols, .act8 = takes_act8(*s.w1)};
  s.h = {.kernels = &kernels, .rows = rows, .K = s.w2->cols, .act8 = takes_act8(*s.w2)};
  s.hidden_stride = s.w1->tiles() * kTileRows;
  DSV4_ASSIGN(s.x.data, scope.take<float>(s.x.units()));
  DSV4_ASSIGN(s.h.data, scope.take<float>(s.h.units()));
  DSV4_ASSIGN(s.hidden, scope.take<bf16>(rows * s.hidden_stride));
  const Segment* before = plan.count ? &plan.segments[plan.count - 1] : nullptr;
  s.x_items = s.x.items() + (before ? before->x_items : 0);
  s.h_items = s.h.items() + (before ? before->h_items : 0);
  plan.segments[plan.count++] = s;
  return {};
}

// Tokens grouped by expert, experts ascending, the shared expert last.
Status make_plan(const LinearKernels& kernels, const MoeArgs& a, Workspace::Scope& scope, Plan& plan) {
  const int64_t assignments = a.T * a.k;
  DSV4_ASSIGN(int64_t* begin, scope.take<int64_t>(a.E + 1));
  DSV4_ASSIGN(plan.token, scope.take<int32_t>(assignments + a.T));
  DSV4_ASSIGN(plan.weight, scope.take<float>(assignments + a.T));
  DSV4_ASSIGN(plan.segments, scope.take<Segment>(std::min(a.E, assignments) + 1));
  std::fill(begin, begin + a.E + 1, 0);
  for (int64_t i = 0; i < assignments; ++i) ++begin[a.ids[i] + 1];
  for (int64_t e = 0; e < a.E; ++e) begin[e + 1] += begin[e];
  for (int64_t e = 0; e < a.E; ++e) {
    if (begin[e] == begin[e + 1]) continue;
    const Segment s{.w1 = &tiles(a.w1, e), .w3 = &tiles(a.w3, e), .w2 = &tiles(a.w2, e), .first = begin[e]};
    DSV4_TRY(add_segment(kernels, plan, scope, s, begin[e + 1] - begin[e]));
  }
  for (int64_t i = 0; i < assignments; ++i) {
    const int64_t at = begin[a.ids[i]]++;
    plan.token[at] = static_cast<int32_t>(i / a.k);
    plan.weight[at] = a.weights[i];
  }
  for (int64_t t = 0; t < a.T; ++t) {
    plan.token[assignments + t] = static_cast<int32_t>(t);
    plan.weight[assignments + t] = 1.0f;
  }
  return add_segment(kernels, plan, scope,
                     {.w1 = &tiles(a.shared_w1), .w3 = &tiles(a.shared_w3), .w2 = &tiles(a.shared_w2),
                      .first = assignments},
                     a.T);
}

// h = silu(w1 x) * (w3 x) * routing weight, for `range` of w1's and w3's tiles.
void run_up(Core& c, const Plan& plan, const Segment& s, float limit, IndexRange range, const WorkerScratch& scratch) {
  const LinearKernels& kernels = c.kernels.linear;
  multiply_range(
      kernels, *s.w1, range, s.x, scratch.multiply, scratch.out,
      [&](int64_t row, int64_t n, int64_t tile, int64_t tiles, const float* gate) {
        const int64_t columns = tiles * kTileRows;
        kernels.multiply(*s.w3, tile, tiles, whole_piece(s.x.at(row), n, s.x.cut()), scratch.multiply,
                         {.y = scratch.out2, .stride = columns, .columns = columns});
        for (int64_t r = 0; r < n; ++r) {
          kernels.swiglu(gate + r * columns, scratch.out2 + r * columns, columns, limit,
                         plan.weight[s.first + row + r],
                         s.hidden + (row + r) * s.hidden_stride + tile * kTileRows);
        }
      });
}

// y for tiles [tile, tile + count) of D: every expert's contribution in ascending order.
void run_down(Core& c, const Plan& plan, const MoeArgs& a, int64_t tile, int64_t count, float* sum,
              const WorkerScratch& scratch) {
  const LinearKernels& kernels = c.kernels.linear;
  const int64_t columns = count * kTileRows;
  std::fill(sum, sum + a.T * columns, 0.0f);
  for (int64_t i = 0; i < plan.count; ++i) {
    const Segment& s = plan.segments[i];
    multiply_range(kernels, *s.w2, {tile, tile + count}, s.h, scratch.multiply, scratch.out,
                   [&](int64_t row, int64_t n, int64_t t, int64_t tiles, const float* out) {
                     for (int64_t r = 0; r < n; ++r) {
                       kernels.add_rounded(out + r * tiles * kTileRows, tiles * kTileRows,
                                           sum + plan.token[s.first + row + r] * columns + (t - tile) * kTileRows);
                     }
                   });
  }
  const int64_t at = tile * kTileRows, n = std::min(columns, a.D - at);
  for (int64_t t = 0; t < a.T; ++t) kernels.round_bf16(sum + t * columns, n, a.y + t * a.D + at);
}

// Highest score + bias first, the lowest id on ties.
void choose(const float* score, const float* bias, int64_t E, int64_t k, int32_t* order, int32_t* ids) {
  for (int64_t e = 0; e < E; ++e) order[e] = static_cast<int32_t>(e);
  std::partial_sort(order, order + k, order + E, [&](int32_t p, int32_t q) {
    const float sp = score[p] + bias[p], sq = score[q] + bias[q];
    return sp != sq ? sp > sq : p < q;
  });
  std::copy_n(order, k, ids);
}

}  // namespace

Status router(OpContext& ctx, const RouterArgs& a) {
  if (a.T == 0) return {};
  Core& c = core(ctx);
  Workspace::Scope scope(ctx.workspace);
  DSV4_ASSIGN(float* score, scope.take<float>(a.T * a.E));
  DSV4_ASSIGN(int32_t* order, scope.take<int32_t>(a.E * c.pool.threads()));
  DSV4_TRY(linear(ctx, {.x = a.x, .w = a.gate, .y = score, .y_dtype = DType::kF32, .T = a.T}));
  auto route = [&](int64_t t, int32_t* scratch) {
    float* row = score + t * a.E;
    int32_t* ids = a.ids + t * a.k;
    for (int64_t e = 0; e < a.E; ++e) row[e] = std::sqrt(softplus(row[e]));
    if (a.tid2eid) {
      std::copy_n(a.tid2eid + a.tokens[t] * a.k, a.k, ids);
    } else {
      choose(row, a.bias, a.E, a.k, scratch, ids);
    }
    float sum = 0.0f;
    for (int64_t i = 0; i < a.k; ++i) sum += row[ids[i]];
    for (int64_t i = 0; i < a.k; ++i) a.weights[t * a.k + i] = row[ids[i]] / sum * a.scaling;
  };
  if (a.T == 1) {
    route(0, order);
    return {};
  }
  c.pool.run([&](int worker) {
    const IndexRange rows = split_range(a.T, c.pool.threads(), worker);
    for (int64_t t = rows.begin; t < rows.end; ++t) route(t, order + worker * a.E);
  });
  return {};
}

Status moe(OpContext& ctx, const MoeArgs& a) {
  if (a.T == 0) return {};
  DSV4_TRY(check_inputs(a));
  Core& c = core(ctx);
  Workspace::Scope scope(ctx.workspace);
  DSV4_ASSIGN(float* scratch, take_worker_scratch(scope, c.pool));
  // The more tiles in one go, the longer every expert's weights are read in the order of memory.
  const int64_t sum_tiles = std::max(kPieceTiles, 64 / a.T);
  DSV4_ASSIGN(float* sums, scope.take<float>(c.pool.threads() * a.T * sum_tiles * kTileRows));
  Plan plan;
  DSV4_TRY(make_plan(c.kernels.linear, a, scope, plan));
  const Segment& last = plan.segments[plan.count - 1];
  const int threads = c.pool.threads();

  c.pool.run([&](int worker) {
    const WorkerScratch s(scratch, worker);
    const IndexRange range = split_range(last.x_items, threads, worker);
    for (int64_t i = range.begin; i < range.end; ++i) {
      int64_t item = i;
      const Segment& segment = locate(plan, item, &Segment::x_items);
      segment.x.fill(item,
                     [&](int64_t r) { return a.x + plan.token[segment.first + r] * a.D; }, s.rows);
    }
  });
  DSV4_ASSIGN(const Shares up, Shares::make(scope, threads));
  DSV4_ASSIGN(const Shares down, Shares::make(scope, threads));
  c.pool.run([&](int worker) {
    const WorkerScratch s(scratch, worker);
    const auto tiles_of = [&](int64_t i) { return plan.segments[i].w1->tiles(); };
    up.work(worker, piece_step(a.T), plan.count, tiles_of, [&](int64_t i, IndexRange range) {
      run_up(c, plan, plan.segments[i], a.limit, range, s);
    });
  });
  c.pool.run([&](int worker) {
    const WorkerScratch s(scratch, worker);
    const IndexRange range = split_range(last.h_items, threads, worker);
    for (int64_t i = range.begin; i < range.end; ++i) {
      int64_t item = i;
      const Segment& segment = locate(plan, item, &Segment::h_items);
      segment.h.fill(item,
                     [&](int64_t r) { return segment.hidden + r * segment.hidden_stride; }, s.rows);
    }
  });
  c.pool.run([&](int worker) {
    const WorkerScratch s(scratch, worker);
    const auto tiles_of = [&](int64_t) { return ceil_div(a.D, kTileRows); };
    down.work(worker, piece_step(a.T), 1, tiles_of, [&](int64_t, IndexRange range) {
      for (int64_t t = range.begin; t < range.end; t += sum_tiles) {
        run_down(c, plan, a, t, std::min(sum_tiles, range.end - t), sums + worker * a.T * sum_tiles * kTileRows, s);
      }
    });
  });
  return {};
}

}  // namespace dsv4::cpu
