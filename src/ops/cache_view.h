// What attention ops get to see of a ragged batch and of the cache. PODs, usable in device code; all
// pointers are in the backend's memory.
#pragma once

#include <cstdint>

#include "ops/cache_spec.h"

namespace dsv4 {

// T rows; sequence i owns rows seq_begin[i] .. seq_begin[i+1]-1 at consecutive positions.
struct BatchView {
  int64_t rows = 0;       // T
  int64_t sequences = 0;  // S
  const int32_t* tokens = nullptr;      // [T]
  const int32_t* positions = nullptr;   // [T]
  const int32_t* row_seq = nullptr;     // [T] index of the row's sequence
  const int32_t* seq_begin = nullptr;   // [S+1]
  const int32_t* seq_slot = nullptr;    // [S] state slot of the sequence
  const int32_t* seq_pages = nullptr;   // [S, max_pages] page id of each span
  int64_t max_pages = 0;
};

// Rows by position, per sequence slot: row of position p at data + ((slot * rows) + p % rows) * row_bytes.
struct RingView {
  char* data = nullptr;
  int64_t rows = 0;  // >= window + the rows a rollback may take back
  int64_t row_bytes = 0;
  KvFormat format = KvFormat::kBf16;
};

// Raw compressor rows by position, per slot: element [slot, p % rows, column], FP32.
struct TailView {
  float* c = nullptr;
  float* s = nullptr;  // wgate x + ape
  int64_t rows = 0;
  int64_t columns = 0;
};

// Entry i of a sequence at data + (page * per_page + i % per_page) * row_bytes with
// page = seq_pages[i / per_page].
struct PagedView {
  char* data = nullptr;
  int64_t per_page = 0;
  int64_t row_bytes = 0;
  KvFormat format = KvFormat::kBf16;
};

struct LayerCacheView {
  RingView ring;
  TailView tail;      // main compressor
  PagedView entries;  // compressed keys/values
  TailView key_tail;  // indexer's compressor
  PagedView keys;     // indexer keys, BF16 [key dim] rows
};

}  // namespace dsv4
