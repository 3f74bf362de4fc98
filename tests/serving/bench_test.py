"""`dsv4 bench serve` against a server: fixed concurrency, random arrivals, conversations of many turns."""

import csv
import json
import pathlib
import subprocess
import tempfile
import unittest
import xml.etree.ElementTree

from fixture import PROGRAM, ServerTest


class Bench(ServerTest):
    def bench(self, *options, url=None):
        return subprocess.run(
            [PROGRAM, "bench", "serve", "--url", url or self.server.url, "--output-tokens", "5", "--prompt-words", "20",
             "--json", *options], capture_output=True, text=True, timeout=120, check=False)

    def figures(self, *options):
        done = self.bench(*options)
        self.assertEqual(done.returncode, 0, done.stderr)
        return json.loads(done.stdout)

    def test_fixed_concurrency(self):
        with tempfile.TemporaryDirectory() as folder:
            table, picture = pathlib.Path(folder, "t.csv"), pathlib.Path(folder, "t.svg")
            r = self.figures("-n", "12", "-c", "4", "--csv", str(table), "--svg", str(picture))
            self.assertEqual((r["requests"], r["failed"], r["completion_tokens"]), (12, 0, 60))
            self.assertLessEqual(r["first_token_seconds"]["p50"], r["first_token_seconds"]["p99"])
            rows = list(csv.DictReader(table.read_text().splitlines()))
            self.assertEqual(len(rows), 12)
            for row in rows:
                self.assertTrue(0 <= float(row["start_s"]) < float(row["first_token_s"]) <= float(row["end_s"]))
            # Never more at a time than asked for.
            edges = sorted([(float(r["start_s"]), 1) for r in rows] + [(float(r["end_s"]), -1) for r in rows])
            running = most = 0
            for _, step in edges:
                running += step
                most = max(most, running)
            self.assertLessEqual(most, 4)
            self.assertTrue(xml.etree.ElementTree.parse(picture).getroot().tag.endswith("svg"))

    def test_random_arrivals_and_conversations(self):
        self.assertEqual(self.figures("-n", "10", "--rate", "50")["requests"], 10)
        r = self.figures("-n", "8", "--turns", "4", "--shared-words", "50", "-c", "2")
        self.assertEqual((r["requests"], r["failed"]), (8, 0))

    def test_what_fails_is_said(self):
        self.assertIn("http://", self.bench(url="https://x").stderr)
        self.assertEqual(self.bench(url="http://127.0.0.1:1").returncode, 1)
        done = self.bench("-n", "2", "--model", "other")
        self.assertEqual((done.returncode, json.loads(done.stdout)["failed"]), (1, 2))
        self.assertIn("does not exist", done.stderr)


if __name__ == "__main__":
    unittest.main()
