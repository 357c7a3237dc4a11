//! Debian's Chromium through its driver: as much of the `WebDriver` protocol as the tests of the page need.

use std::fs;
use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

/// A step of the browser that takes longer is stuck.
const PATIENCE: Duration = Duration::from_secs(60);

/// Without a screen, without root's sandbox, without asking the network for anything.
const FLAGS: [&str; 9] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
];

/// A browser with one window; gone when dropped.
pub(crate) struct Browser {
    http: reqwest::Client,
    /// Where the driver's session is found.
    session: String,
    driver: Child,
}

/// The driver ends at once; its browser only when the session is closed, and a failing test must not leave it.
impl Drop for Browser {
    fn drop(&mut self) {
        drop(close(&self.session));
        drop(self.driver.kill());
        drop(self.driver.wait());
    }
}

/// Closes a session and waits for the answer, without a runtime.
fn close(session: &str) -> std::io::Result<()> {
    let (host, path) = session
        .trim_start_matches("http://")
        .split_once('/')
        .unwrap_or_default();
    let mut stream = TcpStream::connect(host)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(
        stream,
        "DELETE /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    )?;
    stream.read(&mut [0; 1024]).map(drop)
}

/// Whether both programs are installed; if not, the test is skipped, or fails where they are required.
pub(crate) fn is_there() -> bool {
    let missing = ["chromium", "chromedriver"].into_iter().find(|name| {
        let asked = Command::new(name)
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        !asked.is_ok_and(|status| status.success())
    });
    let Some(missing) = missing else {
        return true;
    };
    let required = std::env::var_os("KVGATE_REQUIRE_BROWSER").is_some();
    assert!(
        !required,
        "{missing} is not installed: apt-get install chromium chromium-driver"
    );
    println!("skipped: {missing} is not installed (Debian packages chromium and chromium-driver)");
    false
}

impl Browser {
    /// Starts a browser and opens a file in it.
    pub(crate) async fn open(file: &Path) -> Self {
        let mut child = Command::new("chromedriver")
            .arg("--port=0")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromedriver starts");
        let output = child.stdout.take().expect("its output is piped");
        let mut lines = BufReader::new(output).lines().map_while(Result::ok);
        let port = lines.find_map(|line| {
            let (_, port) = line.split_once("started successfully on port ")?;
            port.trim_end_matches('.').parse::<u16>().ok()
        });
        let http = reqwest::Client::builder()
            .no_proxy()
            .timeout(PATIENCE)
            .build()
            .expect("a client");
        // From here on the driver ends with the browser.
        let mut browser = Self {
            http,
            session: format!(
                "http://127.0.0.1:{}/session",
                port.expect("chromedriver says its port")
            ),
            driver: child,
        };
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": {"args": FLAGS},
            "goog:loggingPrefs": {"browser": "ALL"},
        }}});
        let answer = post(&browser.http, &browser.session, &wanted).await;
        let id = answer["sessionId"].as_str().expect("a session");
        browser.session = format!("{}/{id}", browser.session);
        let url = format!("file://{}", file.display());
        browser.ask("url", &json!({"url": url})).await;
        browser
    }

    async fn ask(&self, command: &str, body: &Value) -> Value {
        post(&self.http, &format!("{}/{command}", self.session), body).await
    }

    /// A command of Chromium's own protocol.
    pub(crate) async fn cdp(&self, command: &str, parameters: Value) -> Value {
        self.ask(
            "goog/cdp/execute",
            &json!({"cmd": command, "params": parameters}),
        )
        .await
    }

    /// What a script returns.
    pub(crate) async fn eval(&self, script: &str) -> Value {
        self.ask("execute/sync", &json!({"script": script, "args": []}))
            .await
    }

    /// Lines of the console, since the last time.
    pub(crate) async fn console(&self) -> Value {
        self.ask("se/log", &json!({"type": "browser"})).await
    }

    /// Makes the window so wide; at 390 pixels it is a phone's.
    pub(crate) async fn width(&self, width: u32) {
        let mobile = width < 700;
        let metrics =
            json!({"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": mobile});
        self.cdp("Emulation.setDeviceMetricsOverride", metrics)
            .await;
    }

    /// Sets the colour scheme that the reader prefers.
    pub(crate) async fn scheme(&self, scheme: &str) {
        let feature = json!({"name": "prefers-color-scheme", "value": scheme});
        self.cdp("Emulation.setEmulatedMedia", json!({"features": [feature]}))
            .await;
    }

    /// Saves a picture of the page from its beginning.
    pub(crate) async fn picture(&self, name: &str) {
        let size = self.eval("return [document.documentElement.clientWidth, document.documentElement.scrollHeight]").await;
        // Chromium draws no more than 16,384 pixels.
        let clip = json!({"x": 0, "y": 0, "width": size[0], "height": size[1].as_u64().map(|h| h.min(16_000)), "scale": 1});
        let shot = self
            .cdp(
                "Page.captureScreenshot",
                json!({"clip": clip, "captureBeyondViewport": true}),
            )
            .await;
        save(name, &shot["data"]);
    }

    /// Saves the page as it is printed, and gives its length in bytes.
    pub(crate) async fn print(&self, name: &str) -> usize {
        let pdf = self.ask("print", &json!({"background": true})).await;
        save(name, &pdf)
    }
}

async fn post(http: &reqwest::Client, url: &str, body: &Value) -> Value {
    let reply = http
        .post(url)
        .json(body)
        .send()
        .await
        .expect("chromedriver answers");
    let mut answer: Value = reply.json().await.expect("JSON");
    let value = answer["value"].take();
    assert!(
        value["error"].is_null() || value["message"].is_null(),
        "{url}: {value}"
    );
    value
}

/// Where pictures of the page are kept.
pub(crate) fn folder() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("page");
    fs::create_dir_all(&folder).expect("a folder for the pictures");
    folder
}

fn save(name: &str, data: &Value) -> usize {
    let bytes = BASE64_STANDARD
        .decode(data.as_str().expect("data"))
        .expect("base64");
    fs::write(folder().join(name), &bytes).expect("a picture can be saved");
    bytes.len()
}
