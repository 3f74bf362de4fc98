// linear, linear_stack, grouped_linear: panels are filled, then multiplied.
#include <array>

#include "backends/cpu/multiply.h"
#include "backends/cpu/ops.h"
#include "backends/cpu/shares.h"
#include "ops/check.h"

namespace dsv4::cpu {
namespace {

// A matrix, which panels it takes, and where its result goes.
struct Job {
  const Tiles* w;
  const Panels* x;
  Output to;
};

Status run_jobs(Core& c, Workspace::Scope& scope, float* scratch, const Job* jobs, int64_t count) {
  DSV4_ASSIGN(const Shares shares, Shares::make(scope, c.pool.threads()));
  const int64_t rows = jobs[0].x->rows, parts = row_parts(rows);
  c.pool.run([&](int worker) {
    const WorkerScratch s(scratch, worker);
    const auto tiles_of = [&](int64_t i) { return jobs[i].w->tiles(); };
    const auto multiply = [&](int64_t i, IndexRange range, IndexRange part) {
      const Job& job = jobs[i];
      multiply_into(c.kernels.linear, *job.w, range, *job.x, part, parts, s.multiply, job.to);
    };
    shares.work_in_parts(worker, piece_step(rows), parts, count, tiles_of, multiply);
  });
  return {};
}

}  // namespace

Status linear_stack(OpContext& ctx, const LinearStackArgs& a) {
  if (a.T == 0) return {};
  if (a.norm) {
    Workspace::Scope scope(ctx.workspace);
    LinearStackArgs normed = a;
    DSV4_ASSIGN(bf16* x, scope.take<bf16>(a.T * a.K));
    DSV4_TRY(rms_norm(ctx, {.x = a.x, .w = a.norm, .y = x, .T = a.T, .N = a.K, .eps = a.norm_eps}));
    normed.x = x;
    normed.norm = nullptr;
    return linear_stack(ctx, normed);
  }
  Core& c = core(ctx);
  const LinearKernels& kernels = c.kernels.linear;
  Panels act8{.kernels = &kernels, .rows = a.T, .K = a.K, .act8 = true};
  Panels plain{.kernels = &kernels, .rows = a.T, .K = a.K};
  std::array<Job, kMaxStackedLinears> jobs;
  bool any_act8 = false, any_plain = false;
  for (int32_t i = 0; i < a.n; ++i) {
    DSV4_TRY(check_dtype("linear", "y", a.y_dtype[i], {DType::kBF16, DType::kF32}));
    DSV4_TRY(check_dim("linear", "K", a.w[i].cols, a.K));
    const Tiles& w = tiles(a.w[i]);
    (takes_act8(w) ? any_act8 : any_plain) = true;
    jobs[static_cast<size_t>(i)] = {&w, takes_act8(w) ? &act8 : &plain,
                                    {.y = a.y[i], .dtype = a.y_dtype[i], .stride = w.rows}};
  }
  Workspace::Scope scope(ctx.workspace);
  DSV4_ASSIGN(float* scratch, take_worker_scratch(scope, c.pool));
  DSV4_ASSIGN(act8.data, scope.take<float>(any_act8 ? act8.units() : 0));
  DSV4_ASSIGN(plain.data, scope.take<float>(any_plain ? plain.units() : 0));

  auto fill = [&](IndexRange items, float* rows) {
    const auto row = [&](int64_t t) { return a.x + t * a.K; };
    for (int64_t i = items.begin; i < items.end; ++i) {
      if (any_act8) act8.fill(i, row, rows);
      if (any_plain) plain.fill(i, row, rows);
    }
  };
  // A short input is filled faster than workers meet.
  constexpr int64_t kShort = 16384;
  const bool alone = plain.rows * plain.padded() <= kShort;
  if (alone) fill({0, plain.items()}, WorkerScratch(scratch, 0).rows);
  if (!alone) {
    c.pool.run([&](int worker) {
      fill(split_range(plain.items(), c.pool.threads(), worker), WorkerScratch(scratch, worker).rows);
    });
  }
  return run_jobs(c, scope, scratch, jobs.data(), a.n);
}

Status linear(OpContext& ctx, const LinearArgs& a) {
  return linear_stack(ctx, {.x = a.x, .T = a.T, .K = a.w.cols, .n = 1, .w = {a.w}, .y = {a.y},
                            .y_dtype = {a.y_dtype}});
}

Status grouped_linear(OpContext& ctx, const GroupedLinearArgs& a) {
  if (a.T == 0) return {};
  Core& c = core(ctx);
  const Weight& w = weight(a.w);
  DSV4_TRY(check_dim("grouped_linear", "groups", w.groups, a.G));
  const int64_t K = a.w.cols;
  // Group g's rows are panels of their own, one set after the other.
  Panels x{.kernels = &c.kernels.linear, .rows = a.T, .K = K};
  Workspace::Scope scope(ctx.workspace);
  DSV4_ASSIGN(float* scratch, take_worker_scratch(scope, c.pool));
  DSV4_ASSIGN(x.data, scope.take<float>(a.G * x.units()));
  auto group = [&](int64_t g) {
    Panels p = x;
    p.data += g * x.units();
    return p;
  };
  c.pool.run([&](int worker) {
    const WorkerScratch s(scratch, worker);
    const IndexRange items = split_range(a.G * x.items(), c.pool.threads(), worker);
    for (int64_t i = items.begin; i < items.end; ++i) {
      const int64_t g = i / x.items();
      group(g).fill(i % x.items(), [&](int64_t t) { return a.x + (t * a.G + g) * K; }, s.rows);
    }
  });
  DSV4_ASSIGN(Panels* panels, scope.take<Panels>(a.G));
  DSV4_ASSIGN(Job* jobs, scope.take<Job>(a.G));
  for (int64_t g = 0; g < a.G; ++g) {
    const Tiles& m = w.matrices[static_cast<size_t>(g)];
    panels[g] = group(g);
    jobs[g] = {&m, &panels[g], {.y = a.y, .stride = a.w.rows, .column = g * m.rows}};
  }
  return run_jobs(c, scope, scratch, jobs, a.G);
}

}  // namespace dsv4::cpu
