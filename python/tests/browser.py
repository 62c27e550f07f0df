# SPDX-License-Identifier: MPL-2.0
"""Chromium, which chromedriver drives over the WebDriver protocol."""

import contextlib
import json
import re
import subprocess
import time
import urllib.error
import urllib.request

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"


class Browser:
    """A session of chromedriver."""

    def __init__(self, port):
        self.base = f"http://127.0.0.1:{port}"
        arguments = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--allow-file-access-from-files",
            "--window-size=1300,1000",
        ]
        logs = {"goog:loggingPrefs": {"browser": "ALL"}}
        wanted = {"browserName": "chrome", "goog:chromeOptions": {"args": arguments}, **logs}
        session = self.call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})[
            "sessionId"
        ]
        self.base += f"/session/{session}"

    def call(self, method, path, body=None):
        data = json.dumps(body or {}).encode() if method == "POST" else None
        request = urllib.request.Request(
            self.base + path, data, {"Content-Type": "application/json"}, method=method
        )
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
            request, timeout=600
        ) as reply:
            return json.load(reply)["value"]

    def run(self, script):
        return self.call("POST", "/execute/sync", {"script": script, "args": []})

    def press(self, selector, keys):
        element = self.call("POST", "/element", {"using": "css selector", "value": selector})[
            ELEMENT
        ]
        self.call("POST", f"/element/{element}/value", {"text": keys})

    def show(self, dark):
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call(
            "POST",
            "/goog/cdp/execute",
            {"cmd": "Emulation.setEmulatedMedia", "params": {"features": features}},
        )


@contextlib.contextmanager
def chromium(log):
    """Run a browser, whose driver writes to the file `log`."""
    with log.open("w") as file:
        driver = subprocess.Popen(
            ["chromedriver", "--port=0"], stdout=file, stderr=subprocess.STDOUT
        )
    try:
        while not (found := re.search(r"started successfully on port (\d+)", log.read_text())):
            assert driver.poll() is None, log.read_text()
            time.sleep(0.1)
        session = Browser(int(found[1]))
        yield session
        with contextlib.suppress(urllib.error.URLError):
            session.call("DELETE", "")
    finally:
        driver.terminate()
        driver.wait()
