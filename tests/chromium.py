"""A headless Chromium for tests of pages."""

import contextlib
import json
import shutil
import tempfile
import time

import pytest

FLAGS = (
  "--headless=new",
  "--no-sandbox",
  "--disable-gpu",
  "--disable-dev-shm-usage",
  "--disable-background-networking",
)


@contextlib.contextmanager
def windows():
  """Yields a function (width, dark) that opens a window; closes all of them. Skips where there is no Chromium."""
  webdriver = pytest.importorskip("selenium.webdriver", reason="pages in a browser: pip install selenium")
  chromium = shutil.which("chromium") or shutil.which("google-chrome")
  driver = shutil.which("chromedriver")
  if not chromium or not driver:
    pytest.skip("pages in a browser: no Chromium with chromedriver on this machine")
  with contextlib.ExitStack() as stack:

    def start(width=1100, dark=False):
      options = webdriver.ChromeOptions()
      options.binary_location = chromium
      profile = stack.enter_context(tempfile.TemporaryDirectory(prefix="chromium.", ignore_cleanup_errors=True))
      for argument in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(argument)
      options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
      window = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
      stack.callback(window.quit)
      scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
      window.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
      size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
      window.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
      window.implicitly_wait(0)
      return window

    yield start


def until(condition, seconds=300):
  """Waits for a condition and returns its value."""
  end = time.monotonic() + seconds
  while not (value := condition()):
    assert time.monotonic() < end, "the page did not get there in time"
    time.sleep(0.05)
  return value


def texts(window, selector):
  """The texts of the elements that a selector finds."""
  return window.execute_script(f"return [...document.querySelectorAll({selector!r})].map(x => x.textContent)")


def requests(window):
  """The addresses that the window asked for, without those of the browser's own pages."""
  messages = [json.loads(line["message"])["message"] for line in window.get_log("performance")]
  urls = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
  return [url for url in urls if not url.startswith("chrome")]
