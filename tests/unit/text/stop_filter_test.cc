#include "text/stop_filter.h"

#include <gtest/gtest.h>

namespace dsv4 {
namespace {

// The text that comes out when `text` goes in in pieces of `piece` bytes.
std::string filtered(std::vector<std::string> stops, std::string_view text, size_t piece,
                     bool& found) {
  StopFilter filter(std::move(stops));
  std::string out;
  for (size_t at = 0; at < text.size(); at += piece) out += filter.push(text.substr(at, piece));
  out += filter.finish();
  found = filter.found();
  return out;
}

TEST(StopFilter, EndsBeforeTheFirstStopHoweverTheTextIsCut) {
  for (size_t piece = 1; piece < 12; ++piece) {
    bool found = false;
    EXPECT_EQ(filtered({"END"}, "one END two", piece, found), "one ") << piece;
    EXPECT_TRUE(found);
    EXPECT_EQ(filtered({"aab"}, "aaaab", piece, found), "aa") << piece;
    EXPECT_TRUE(found);
  }
}

TEST(StopFilter, WhatOnlyLookedLikeAStopComesOut) {
  for (size_t piece = 1; piece < 12; ++piece) {
    bool found = true;
    EXPECT_EQ(filtered({"END", "EEE"}, "EN EE NDE", piece, found), "EN EE NDE");
    EXPECT_FALSE(found);
    EXPECT_EQ(filtered({}, "plain", piece, found), "plain");
  }
}

}  // namespace
}  // namespace dsv4
