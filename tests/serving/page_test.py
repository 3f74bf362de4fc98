"""The page in headless Chromium, driven as a reader would: typing, keys, buttons.

  page_test.py --screenshot FILE   also writes the picture of docs/
"""

import json
import os
import shutil
import sys
import unittest

from fixture import TIME_TOOL, ServerTest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
if not (CHROMIUM and DRIVER):
    print("chromium and chromium-driver are not installed: run scripts/setup --python")
    sys.exit(77)

from selenium import webdriver  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

SCREENSHOT = sys.argv[2] if sys.argv[1:2] == ["--screenshot"] else None


class Page(ServerTest):
    OPTIONS = ("--ctx", "60000")

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for flag in ("--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking",
                     "--no-first-run", *(["--no-sandbox"] if os.geteuid() == 0 else [])):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        cls.browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))

    @classmethod
    def tearDownClass(cls):
        cls.browser.quit()
        super().tearDownClass()

    def setUp(self):
        self.browser.set_window_size(1000, 900)
        self.browser.get(self.server.url + "/")
        self.browser.execute_script("localStorage.clear()")
        self.browser.get(self.server.url + "/")
        self.wait(lambda: self.find("#model").text == "demo")

    def tearDown(self):
        # Nothing from outside, nothing wrong in the script.
        problems = [e for e in self.browser.get_log("browser") if e["level"] == "SEVERE"]
        self.assertEqual(problems, [])

    def find(self, css):
        return self.browser.find_element(By.CSS_SELECTOR, css)

    def all(self, css):
        return self.browser.find_elements(By.CSS_SELECTOR, css)

    def wait(self, condition, seconds=60):
        return WebDriverWait(self.browser, seconds, poll_frequency=0.05).until(lambda _: condition())

    def set(self, field, value):
        e = self.find("#" + field)
        if not e.is_displayed():
            self.find("#toggle").click()
        if e.tag_name == "select":
            e.find_element(By.CSS_SELECTOR, f'option[value="{value}"]').click()
        else:
            e.clear()
            e.send_keys(value)
            e.send_keys(Keys.TAB)

    def send(self, text):
        self.find("#input").send_keys(text + Keys.ENTER)

    def finished(self):
        return self.find("#send").is_displayed() and any("tok/s" in n.text for n in self.all(".note"))

    def never_end(self):
        """Answers from now on do not end by themselves."""
        self.browser.execute_script(
            "const f = fetch; fetch = (u, o) => o && o.body ? f(u, {...o, body: JSON.stringify("
            "{...JSON.parse(o.body), logit_bias: {'1': -100}})}) : f(u, o);")

    def test_answer_comes_in_pieces(self):
        self.set("max_tokens", "3000")
        self.never_end()
        # The page itself counts: from outside, a busy machine may see it only once or twice.
        self.browser.execute_script("""
            window.lengths = new Set();
            new MutationObserver(() => {
              for (const e of document.querySelectorAll(".assistant .text")) lengths.add(e.textContent.length);
            }).observe(document.body, {childList: true, subtree: true, characterData: true});
        """)
        self.send("Tell me a story about a fox.")
        self.wait(self.finished)
        self.assertGreater(self.browser.execute_script("return lengths.size"), 2)

    def test_send_and_go_on(self):
        self.set("temperature", "0")
        self.send("Tell me a story about a fox.")
        self.assertEqual(self.find("#input").get_attribute("value"), "")
        self.wait(self.finished)
        self.assertTrue(self.find(".assistant .text").text.startswith("Once upon a time"))
        # The conversation goes on: the next question knows the first.
        self.send("Tell me a story about an owl.")
        self.wait(lambda: len(self.all(".assistant")) == 2 and self.finished())

    def test_stop(self):
        self.set("max_tokens", "50000")
        self.never_end()
        self.send("Tell me a story about a fox.")
        self.wait(lambda: self.all(".assistant .text"))
        self.find("#stop").click()
        self.wait(lambda: self.find("#send").is_displayed())
        self.assertIn("stopped", self.find(".note").text)
        self.send("Tell me a story about an owl.")
        self.wait(lambda: len(self.all(".assistant .text")) == 2)
        self.find("#input").send_keys(Keys.ESCAPE)
        self.wait(lambda: self.find("#send").is_displayed())
        self.wait(lambda: "dsv4_requests_running 0" in self.server.get("/metrics")[2])

    def test_thinking_and_tool_call(self):
        self.set("temperature", "0")
        self.set("thinking", "high")
        self.set("tools", json.dumps([TIME_TOOL]))
        self.find("#toggle").click()
        self.send("What time is it in Rome?")
        self.wait(lambda: self.all(".call input"))
        self.assertIn('get_time {"city": "Rome"}', self.find(".call").text)
        thinking = self.find("details")
        self.assertFalse(thinking.get_attribute("open"))  # folded
        thinking.find_element(By.CSS_SELECTOR, "summary").click()
        self.assertTrue(thinking.find_element(By.CSS_SELECTOR, ".text").text)
        self.find(".call input").send_keys('{"time": "12:27"}' + Keys.ENTER)
        self.wait(lambda: any("12:27 in Rome" in e.text for e in self.all(".assistant > .text")) and self.finished())
        if SCREENSHOT:
            self.browser.save_screenshot(SCREENSHOT)

    def test_error_is_shown(self):
        self.set("temperature", "9999")
        self.send("Tell me a story about a fox.")
        self.wait(lambda: self.all(".error"))
        self.assertIn("temperature", self.find(".error").text)
        self.browser.get_log("browser")  # the 400 is what was wanted

    def test_phone(self):
        self.browser.set_window_size(390, 800)
        self.set("temperature", "0")
        self.find("#toggle").click()
        self.send("Tell me a story about a fox.")
        self.wait(self.finished)
        width = self.browser.execute_script("return document.documentElement.scrollWidth")
        self.assertLessEqual(width, self.browser.execute_script("return innerWidth"))  # nothing sticks out
        self.assertTrue(self.find("#send").is_displayed())


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
