// SPDX-License-Identifier: MPL-2.0

//! Chromium, which chromedriver drives over the WebDriver protocol.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use serde_json::{Value, json};
use starsr_testkit::fixtures::skip;
use starsr_testkit::patience::patiently;

/// A session of chromedriver.
pub struct Browser {
    driver: Child,
    port: u16,
    session: String,
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The session may be gone with what failed; then the driver ends its browser.
        let _ = request(self.port, "DELETE", &self.session, None);
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

impl Browser {
    /// Opens `page`; `None` where the test is skipped because there is no browser.
    pub fn open(page: &Path) -> Option<Self> {
        for program in ["chromium", "chromedriver"] {
            let found = Command::new(program).arg("--version").output();
            if !found.is_ok_and(|output| output.status.success()) {
                skip(&format!("{program} is missing; run tools/install-system tests"));
                return None;
            }
        }
        let mut command = Command::new("chromedriver");
        let mut driver = command.arg("--port=0").stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines();
        let port = lines.find_map(|line| {
            let line = line.unwrap();
            let port = line.split_once("started successfully on port ")?.1;
            port.trim_end_matches('.').parse().ok()
        });
        let mut browser = Self { driver, port: port.unwrap(), session: String::new() };
        let options = ["--headless", "--no-sandbox", "--disable-gpu"];
        let wanted = json!({
            "browserName": "chrome",
            "goog:chromeOptions": { "args": options },
            "goog:loggingPrefs": { "browser": "ALL" },
        });
        let session =
            browser.post("/session", json!({ "capabilities": { "alwaysMatch": wanted } }));
        browser.session = format!("/session/{}", session["sessionId"].as_str().unwrap());
        browser.resize(1300, 900);
        browser.post("/url", json!({ "url": format!("file://{}", page.display()) }));
        Some(browser)
    }

    fn post(&self, path: &str, body: Value) -> Value {
        let reply = request(self.port, "POST", &format!("{}{path}", self.session), Some(body));
        reply.unwrap()["value"].take()
    }

    /// What `script` returns.
    pub fn run(&self, script: &str) -> Value {
        self.post("/execute/sync", json!({ "script": script, "args": [] }))
    }

    /// Waits until `expression` holds.
    #[track_caller]
    pub fn wait_for(&self, expression: &str) {
        patiently(expression, || {
            let holds = self.run(&format!("return Boolean({expression})")) == true;
            if !holds {
                sleep(Duration::from_millis(20));
            }
            holds.then_some(())
        });
    }

    /// Presses keys where the focus is.
    pub fn press(&self, keys: &str) {
        let press = |key| {
            ["keyDown", "keyUp"].map(|kind| json!({ "type": kind, "value": String::from(key) }))
        };
        let presses: Vec<_> = keys.chars().flat_map(press).collect();
        self.act(json!({ "type": "key", "id": "keys", "actions": presses }));
    }

    /// Moves a pressed pointer, a `mouse` or `touch`, from one place of the window to another.
    pub fn drag(&self, kind: &str, from: (f64, f64), to: (f64, f64)) {
        let at =
            |(x, y): (f64, f64)| json!({ "type": "pointerMove", "x": x as i64, "y": y as i64 });
        let actions = json!([at(from), { "type": "pointerDown", "button": 0 }, at(to), { "type": "pointerUp", "button": 0 }]);
        let parameters = json!({ "pointerType": kind });
        self.act(
            json!({ "type": "pointer", "id": kind, "parameters": parameters, "actions": actions }),
        );
    }

    pub fn wheel(&self, (x, y): (f64, f64), delta: i64) {
        let scroll =
            json!({ "type": "scroll", "x": x as i64, "y": y as i64, "deltaX": 0, "deltaY": delta });
        self.act(json!({ "type": "wheel", "id": "wheel", "actions": [scroll] }));
    }

    fn act(&self, action: Value) {
        self.post("/actions", json!({ "actions": [action] }));
    }

    fn emulate(&self, command: &str, parameters: Value) {
        let command = format!("Emulation.{command}");
        self.post("/goog/cdp/execute", json!({ "cmd": command, "params": parameters }));
    }

    pub fn resize(&self, width: u32, height: u32) {
        let size =
            json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.emulate("setDeviceMetricsOverride", size);
    }

    pub fn color_scheme(&self, scheme: &str) {
        let feature = json!({ "name": "prefers-color-scheme", "value": scheme });
        self.emulate("setEmulatedMedia", json!({ "features": [feature] }));
    }

    /// Fails where the console holds errors.
    #[track_caller]
    pub fn assert_no_errors(&self) {
        let entries = self.post("/se/log", json!({ "type": "browser" }));
        let mut entries = entries.as_array().unwrap().clone();
        entries.retain(|entry| entry["level"] == "SEVERE");
        assert!(entries.is_empty(), "{entries:?}");
    }
}

/// One exchange over HTTP.
fn request(port: u16, method: &str, path: &str, body: Option<Value>) -> std::io::Result<Value> {
    let body = body.map_or_else(String::new, |body| body.to_string());
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )?;
    let mut reader = BufReader::new(stream);
    let (mut line, mut length) = (String::new(), 0);
    let mut status = String::new();
    while reader.read_line(&mut line)? > 0 && !line.trim().is_empty() {
        if status.is_empty() {
            status.clone_from(&line);
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().unwrap_or(0);
        }
        line.clear();
    }
    let mut reply = vec![0; length];
    reader.read_exact(&mut reply)?;
    let reply = String::from_utf8_lossy(&reply);
    assert!(status.contains(" 200 "), "{method} {path}: {reply}");
    Ok(serde_json::from_str(&reply)?)
}
