// The layouts of the CUDA backend against what its tensor core instructions take, element by element.
#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <set>
#include <vector>

#include "backends/cuda/packed.h"
#include "formats/e2m1.h"
#include "formats/e4m3.h"

namespace dsv4::cuda {
namespace {

constexpr int kLanes = 32;

// Element (row, k) of the A operand of m16n8k32 that lane `lane` holds in byte `byte` of register `reg`, by the
// instruction's definition, each four of K in the order (k0, k2, k1, k3).
struct RowK {
  int row, k;
};
RowK a_element(int lane, int reg, int byte) {
  const int g = lane / 4, t = lane % 4, order[] = {0, 2, 1, 3};
  return {g + reg % 2 * 8, reg / 2 * 16 + 4 * t + order[byte]};
}

uint32_t word_at(const std::vector<uint8_t>& bytes, size_t at) {
  uint32_t w;
  memcpy(&w, bytes.data() + at, 4);
  return w;
}

TEST(Layout, EveryElementHasAPlaceOfItsOwn) {
  std::set<int> bf16, e4m3;
  std::set<std::pair<int, int>> e2m1;
  for (int r = 0; r < kTileRows; ++r) {
    for (int k = 0; k < kBlockK; ++k) {
      bf16.insert(place_bf16(r, k).byte);
      e4m3.insert(place_e4m3(r, k).byte);
      e2m1.insert({place_e2m1(r, k).byte, place_e2m1(r, k).element});
    }
  }
  constexpr size_t kAll = kTileRows * kBlockK;
  EXPECT_EQ(bf16.size(), kAll);
  EXPECT_EQ(e4m3.size(), kAll);
  EXPECT_EQ(e2m1.size(), kAll);
  EXPECT_EQ(*bf16.rbegin() + 2, block_code_bytes(WeightFormat::kBf16));
  EXPECT_EQ(*e4m3.rbegin() + 1, block_code_bytes(WeightFormat::kFp8Tile128));
  EXPECT_EQ(e2m1.rbegin()->first + 4, block_code_bytes(WeightFormat::kMxfp4));
}

TEST(Layout, Fp8BlocksAreTheOperandsOfTheirLanes) {
  std::vector<uint8_t> block(2048);
  for (int r = 0; r < kTileRows; ++r) {
    for (int k = 0; k < kBlockK; ++k) block[static_cast<size_t>(place_e4m3(r, k).byte)] = static_cast<uint8_t>(r * 31 + k * 7);
  }
  for (int j = 0; j < 4; ++j) {
    for (int lane = 0; lane < kLanes; ++lane) {
      // The 16 bytes of a lane, as registers 0, 2, 1, 3 of the operand.
      const size_t at = static_cast<size_t>(j * kLanes + lane) * 16;
      const int reg_of_word[] = {0, 2, 1, 3};
      for (int word = 0; word < 4; ++word) {
        for (int byte = 0; byte < 4; ++byte) {
          const RowK e = a_element(lane, reg_of_word[word], byte);
          EXPECT_EQ(block[at + static_cast<size_t>(word * 4 + byte)], static_cast<uint8_t>(e.row * 31 + (32 * j + e.k) * 7));
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
      const uint32_t word = word_at(block, static_cast<size_t>(p.byte)) | place_code(code, p.element);
      memcpy(block.data() + p.byte, &word, 4);
      EXPECT_EQ(code_at(word, p.element), code);
    }
  }
  for (int j = 0; j < 4; ++j) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const size_t at = static_cast<size_t>(j / 2 * kLanes + lane) * 16 + static_cast<size_t>(j % 2 * 8);
      uint32_t a[4];
      e2m1_to_e4m3(word_at(block, at), a[0], a[2]);
      e2m1_to_e4m3(word_at(block, at + 4), a[1], a[3]);
      for (int reg = 0; reg < 4; ++reg) {
        for (int byte = 0; byte < 4; ++byte) {
          const RowK e = a_element(lane, reg, byte);
          const float expected = e2m1_to_float(codes[static_cast<size_t>(e.row * kBlockK + 32 * j + e.k)]) * 0x1p-6f;
          const float found = e4m3_to_float(static_cast<uint8_t>(a[reg] >> (8 * byte)));
          EXPECT_EQ(found, expected);
          EXPECT_EQ(std::signbit(found), std::signbit(expected));
        }
      }
    }
  }
}

TEST(Layout, Bf16BlocksMeetTheirInputInItsOwnOrder) {
  for (int r = 0; r < kTileRows; ++r) {
    for (int k = 0; k < kBlockK; ++k) {
      // Lane 4 g + t reads 16 bytes of its row and of the input: elements 8 t .. 8 t + 7 of a group of 32.
      const int lane = place_bf16(r, k).byte / 16 % kLanes;
      EXPECT_EQ(lane, r % 8 * 4 + k % 32 / 8);
      EXPECT_EQ(place_bf16(r, k).byte % 16, k % 8 * 2);
    }
  }
}

TEST(Layout, QuantisedInputGivesALaneTwoProductsInOneLoad) {
  std::set<int> places;
  for (int k = 0; k < kBlockK; k += 4) {
    const int at = quantised_at(k);
    places.insert(at);
    EXPECT_EQ(at / 64, k / 64);
    EXPECT_EQ(at % 64 / 16, k % 16 / 4) << "of lane t";
    EXPECT_EQ(at % 16 / 4, k % 64 / 32 * 2 + k % 32 / 16) << "product, then half of its K";
  }
  EXPECT_EQ(places.size(), static_cast<size_t>(kBlockK / 4));
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
