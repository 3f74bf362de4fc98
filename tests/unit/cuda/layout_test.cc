// The layouts of the CUDA backend against what its tensor core instructions take, element by element.
#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <set>
#include <vector>

#include "backends/cuda/packed.h"
#include "formats/bf16.h"
#include "formats/e2m1.h"
#include "formats/e4m3.h"

namespace dsv4::cuda {
namespace {

constexpr int kLanes = 32;

// Row and element of K of a group of 32 that lane `lane` has in half `half` of register `reg` of the A operand of
// m16n8k16 in step s, by the instruction's definition.
struct RowK {
  int row, k;
};
RowK a_element(int lane, int s, int reg, int half) {
  const int g = lane / 4, t = lane % 4;
  return {g + reg % 2 * 8, 16 * s + reg / 2 * 8 + 2 * t + half};
}

uint32_t word_at(const std::vector<uint8_t>& bytes, size_t at) {
  uint32_t w;
  memcpy(&w, bytes.data() + at, 4);
  return w;
}

TEST(Layout, EveryElementHasAPlaceOfItsOwn) {
  std::set<int> bf16;
  std::set<std::pair<int, int>> e4m3, e2m1;
  for (int r = 0; r < kTileRows; ++r) {
    for (int k = 0; k < kBlockK; ++k) {
      bf16.insert(place_bf16(r, k).byte);
      e4m3.insert({place_e4m3(r, k).byte, place_e4m3(r, k).element});
      e2m1.insert({place_e2m1(r, k).byte, place_e2m1(r, k).element});
    }
  }
  constexpr size_t kAll = kTileRows * kBlockK;
  EXPECT_EQ(bf16.size(), kAll);
  EXPECT_EQ(e4m3.size(), kAll);
  EXPECT_EQ(e2m1.size(), kAll);
  EXPECT_EQ(*bf16.rbegin() + 2, block_code_bytes(WeightFormat::kBf16));
  EXPECT_EQ(e4m3.rbegin()->first + 4, block_code_bytes(WeightFormat::kFp8Tile128));
  EXPECT_EQ(e2m1.rbegin()->first + 8, block_code_bytes(WeightFormat::kMxfp4));
}

TEST(Layout, E4m3BlocksBecomeTheOperandsOfTheirLanes) {
  std::mt19937 rng(5);
  std::vector<uint8_t> codes(kTileRows * kBlockK), block(2048);
  for (int r = 0; r < kTileRows; ++r) {
    for (int k = 0; k < kBlockK; ++k) {
      const uint8_t code = static_cast<uint8_t>(rng() % 256) & (rng() % 2 ? 0xff : 0x87);  // many subnormals
      codes[static_cast<size_t>(r * kBlockK + k)] = (code & 0x7f) == 0x7f ? 0 : code;
      const Place p = place_e4m3(r, k);
      uint32_t word = word_at(block, static_cast<size_t>(p.byte));
      word |= static_cast<uint32_t>(place_code<8>(codes[static_cast<size_t>(r * kBlockK + k)], p.element));
      memcpy(block.data() + p.byte, &word, 4);
      EXPECT_EQ(code_at<8>(word, p.element), codes[static_cast<size_t>(r * kBlockK + k)]);
    }
  }
  for (int j = 0; j < 4; ++j) {
    for (int lane = 0; lane < kLanes; ++lane) {
      // The four words of a lane: row g of both steps, then row g + 8.
      const size_t at = static_cast<size_t>(j * kLanes + lane) * 16;
      for (int word = 0; word < 4; ++word) {
        uint32_t pairs[2];
        e4m3_to_bf16(word_at(block, at + static_cast<size_t>(word) * 4), pairs);
        for (int i = 0; i < 4; ++i) {
          const RowK e = a_element(lane, word % 2, word / 2 + i / 2 * 2, i % 2);
          const float expected = e4m3_to_float(codes[static_cast<size_t>(e.row * kBlockK + 32 * j + e.k)]);
          const float found = to_float(bf16{static_cast<uint16_t>(pairs[i / 2] >> (16 * (i % 2)))}) * 0x1p120f;
          EXPECT_EQ(found, expected);
          EXPECT_EQ(std::signbit(found), std::signbit(expected));
        }
      }
    }
  }
}

TEST(Layout, E2m1BlocksBecomeTheOperandsOfTheirLanes) {
  std::mt19937 rng(7);
  std::vector<uint8_t> codes(kTileRows * kBlockK), block(1024);
  for (int r = 0; r < kTileRows; ++r) {
    for (int k = 0; k < kBlockK; ++k) {
      const uint32_t code = rng() % 16;
      codes[static_cast<size_t>(r * kBlockK + k)] = static_cast<uint8_t>(code);
      const Place p = place_e2m1(r, k);
      uint64_t words;
      memcpy(&words, block.data() + p.byte, 8);
      words |= place_code<4>(code, p.element);
      memcpy(block.data() + p.byte, &words, 8);
      EXPECT_EQ(code_at<4>(words, p.element), code);
    }
  }
  for (int j = 0; j < 4; ++j) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const size_t at = static_cast<size_t>(j / 2 * kLanes + lane) * 16 + static_cast<size_t>(j % 2 * 8);
      const uint32_t words[2] = {word_at(block, at), word_at(block, at + 4)};
      uint32_t pairs[2][4];
      e2m1_to_bf16(words, pairs);
      for (int high = 0; high < 2; ++high) {
        for (int p = 0; p < 4; ++p) {
          for (int half = 0; half < 2; ++half) {
            const RowK e = a_element(lane, p / 2, high + p % 2 * 2, half);
            const float expected = e2m1_to_float(codes[static_cast<size_t>(e.row * kBlockK + 32 * j + e.k)]);
            const float found = to_float(bf16{static_cast<uint16_t>(pairs[high][p] >> (16 * half))}) * 0x1p126f;
            EXPECT_EQ(found, expected);
            EXPECT_EQ(std::signbit(found), std::signbit(expected));
          }
        }
      }
    }
  }
}

TEST(Layout, Bf16BlocksAreTheOperandsOfTheirLanes) {
  std::vector<uint16_t> block(2048);
  for (int r = 0; r < kTileRows; ++r) {
    for (int k = 0; k < kBlockK; ++k) block[static_cast<size_t>(place_bf16(r, k).byte / 2)] = static_cast<uint16_t>(r * kBlockK + k);
  }
  for (int j = 0; j < 4; ++j) {
    for (int lane = 0; lane < kLanes; ++lane) {
      for (int high = 0; high < 2; ++high) {
        // 16 bytes of a row: both registers of the first step, then of the second.
        const size_t at = static_cast<size_t>((j * 2 + high) * kLanes + lane) * 8;
        for (int i = 0; i < 8; ++i) {
          const RowK e = a_element(lane, i / 4, high + i / 2 % 2 * 2, i % 2);
          EXPECT_EQ(block[at + static_cast<size_t>(i)], e.row * kBlockK + 32 * j + e.k);
        }
      }
    }
  }
}

TEST(Layout, RoundedTokensGiveEachLaneOneGroupOfScales) {
  std::set<int> places;
  for (int k = 0; k < kBlockK; ++k) {
    places.insert(rounded_place(k));
    EXPECT_EQ(position_of(rounded_place(k)).t, k / 32) << "MXFP4 has a scale for 32 elements";
    EXPECT_EQ(position_of(rounded_place(k)).group / 2, k % 32 / 16) << "NVFP4 for 16: two groups of a lane";
    if (k % 2 == 0) {
      EXPECT_EQ(rounded_place(k + 1), rounded_place(k) + 1) << "pairs are stored together";
    }
  }
  EXPECT_EQ(places.size(), static_cast<size_t>(kBlockK));
  EXPECT_EQ(*places.rbegin() + 1, kBlockK);
}

TEST(Layout, TokenPiecesFillATileAndMeetAllBanks) {
  std::set<int> places;
  for (int piece = 0; piece < 8; ++piece) {
    std::set<int> banks;  // of 16 bytes
    for (int n = 0; n < 8; ++n) {
      places.insert(token_piece(n, piece));
      banks.insert(token_piece(n, piece) / 16 % 8);
    }
    EXPECT_EQ(banks.size(), 8u) << "the eight rows of a tile, the same piece";
  }
  EXPECT_EQ(places.size(), 64u);
  EXPECT_EQ(*places.rbegin() + 16, kTokenTileBytes);
  EXPECT_EQ(token_piece(9, 3) - token_piece(1, 3), kTokenTileBytes) << "tiles follow each other";
}

}  // namespace
}  // namespace dsv4::cuda
