// SPDX-License-Identifier: MPL-2.0

//! The page in a browser.

use super::browser::Browser;
use super::*;

const LEFT: &str = "\u{e012}";
const RIGHT: &str = "\u{e014}";
const HOME: &str = "\u{e011}";
const END: &str = "\u{e010}";
const TAB: &str = "\u{e004}";
const YELLOW: Color = [255, 255, 0];
const BLACK: Color = [0, 0, 0];
const WHITE: Color = [255, 255, 255];

impl Browser {
    /// The colour at a place of the canvas, in fractions of its size.
    fn color(&self, x: f64, y: f64) -> Color {
        let script = format!(
            "const c = document.querySelector('canvas'); return [...c.getContext('2d') \
             .getImageData(Math.floor({x} * c.width), Math.floor({y} * c.height), 1, 1).data]"
        );
        let color: Vec<u8> = serde_json::from_value(self.run(&script)).unwrap();
        [color[0], color[1], color[2]]
    }

    /// A place of the canvas in the window.
    fn place(&self, x: f64, y: f64) -> (f64, f64) {
        let script = "const c = document.querySelector('canvas'); c.scrollIntoView({ block: 'center' }); \
                      return c.getBoundingClientRect().toJSON()";
        let area = self.run(script);
        let number = |name: &str| area[name].as_f64().unwrap();
        (number("x") + x * number("width"), number("y") + y * number("height"))
    }

    /// Waits for the frame with this number.
    #[track_caller]
    fn shows(&self, frame: usize) {
        self.wait_for(&format!("document.querySelector('#stage').dataset.frame === '{frame}'"));
    }

    fn text(&self, selector: &str) -> String {
        let script = format!("return document.querySelector('{selector}').textContent");
        self.run(&script).as_str().unwrap().to_owned()
    }

    fn click(&self, selector: &str) {
        self.run(&format!("document.querySelector('{selector}').click()"));
    }
}

/// A page of six frames: red and blue, green and yellow, equal greys, an edge, greys without a frame
/// of B, and red and blue once more.
fn page(folder: &TempDir) -> PathBuf {
    let (small, large) = ((48, 32), (96, 64));
    let edge = |(width, height): (usize, usize)| {
        [[BLACK; 1].repeat(width / 2), [WHITE; 1].repeat(width / 2)]
            .concat()
            .concat()
            .repeat(height)
    };
    let a = [RED, GREEN, GREY, GREY, GREY, RED].map(|color| plain(small, color));
    let mut a: Vec<_> = (0..).step_by(40).zip(a).collect();
    a[3].1 = edge(small);
    let b = [BLUE, YELLOW, GREY, GREY, GREY, BLUE].map(|color| plain(large, color));
    let mut b: Vec<_> = (0..).step_by(40).zip(b).collect();
    b[3].1 = edge(large);
    b.remove(4);
    film(&folder.path().join("a & <b>.mkv"), small, &a);
    film(&folder.path().join("b.mkv"), large, &b);
    let (_, data) = compared(folder, &["a & <b>.mkv", "b.mkv"]);
    assert_eq!(data["about"]["isLossless"], true);
    folder.path().join("compare.html")
}

#[test]
fn the_page_shows_the_frames_in_a_browser() {
    let folder = TempDir::new().unwrap();
    let Some(browser) = Browser::open(&page(&folder)) else { return };
    browser.shows(0);
    assert_eq!(browser.text("h1"), "a & <b>.mkv – b.mkv");
    assert_eq!((browser.color(0.2, 0.5), browser.color(0.8, 0.5)), (RED, BLUE));

    // The divider follows the mouse, a finger and keys.
    browser.drag("mouse", browser.place(0.5, 0.5), browser.place(0.25, 0.6));
    assert_eq!((browser.color(0.2, 0.5), browser.color(0.4, 0.5)), (RED, BLUE));
    browser.drag("touch", browser.place(0.25, 0.5), browser.place(0.9, 0.5));
    assert_eq!((browser.color(0.8, 0.5), browser.color(0.95, 0.5)), (RED, BLUE));
    browser.run("document.querySelector('#split').focus()");
    browser.press(HOME);
    assert_eq!((browser.color(0.1, 0.5), browser.color(0.9, 0.5)), (BLUE, BLUE));
    browser.press(END);
    assert_eq!((browser.color(0.1, 0.5), browser.color(0.9, 0.5)), (RED, RED));
    // At the divider the key does not step frames.
    browser.press(HOME);
    browser.press(RIGHT);
    browser.shows(0);
    browser.drag("mouse", browser.place(0.9, 0.5), browser.place(0.5, 0.5));

    // Frames are stepped by keys, buttons, the range and the charts.
    browser.run("document.activeElement.blur()");
    browser.press(RIGHT);
    browser.shows(1);
    assert_eq!((browser.color(0.2, 0.5), browser.color(0.8, 0.5)), (GREEN, YELLOW));
    browser.click("#next");
    browser.shows(2);
    assert_eq!((browser.color(0.2, 0.5), browser.color(0.8, 0.5)), (GREY, GREY));
    assert!(browser.text("#figures").contains("equal pictures"), "{}", browser.text("#figures"));
    browser.run("document.querySelector('#frame').focus()");
    browser.press(END);
    browser.shows(5);
    browser.press(LEFT);
    browser.shows(4);
    assert!(browser.text("#figures").contains("B has no frame"), "{}", browser.text("#figures"));
    assert_eq!(browser.color(0.2, 0.5), GREY);
    // The second dot stands for the second frame.
    let dot = browser.run(
        "const svg = document.querySelector('#psnr svg'); svg.scrollIntoView({ block: 'center' }); \
         const [dot, area] = [svg.querySelectorAll('circle')[1], svg].map((e) => e.getBoundingClientRect()); \
         return [dot.x + dot.width / 2, area.y + area.height / 2]",
    );
    let dot = (dot[0].as_f64().unwrap(), dot[1].as_f64().unwrap());
    browser.drag("mouse", dot, dot);
    browser.shows(1);

    // Playing goes on to the end and begins anew.
    browser.run(
        "window.seen = []; const stage = document.querySelector('#stage'); \
         new MutationObserver(() => seen.push(stage.dataset.frame)).observe(stage, { attributes: true })",
    );
    browser.click("#play");
    browser.wait_for("seen.join().includes('2,3,4,5,0,1')");
    browser.click("#play");
    assert_eq!(browser.text("#play"), "Play");
    browser.assert_no_errors();
}

#[test]
fn the_page_zooms_and_shows_differences() {
    let folder = TempDir::new().unwrap();
    let Some(browser) = Browser::open(&page(&folder)) else { return };
    browser.shows(0);

    // Side by side, and differences: 170 levels, and none.
    browser.press("b");
    assert_eq!((browser.color(0.05, 0.5), browser.color(0.45, 0.5)), (RED, RED));
    assert_eq!((browser.color(0.55, 0.5), browser.color(0.95, 0.5)), (BLUE, BLUE));
    browser.press("d");
    assert_eq!((browser.color(0.2, 0.5), browser.color(0.8, 0.5)), (WHITE, WHITE));
    browser.run(
        "const gain = document.querySelector('#gain'); gain.value = 1; gain.dispatchEvent(new Event('change'))",
    );
    assert_eq!(browser.color(0.5, 0.5), YELLOW);
    browser.press(&RIGHT.repeat(2));
    browser.shows(2);
    assert_eq!(browser.color(0.5, 0.5), BLACK);

    // Pixels are squares above 1:1, and mixed where that is asked for.
    browser.press("s");
    browser.press(RIGHT);
    browser.shows(3);
    let mixed = "const c = document.querySelector('canvas'); \
        return c.getContext('2d').getImageData(0, c.height >> 1, c.width, 1).data \
        .some((level) => level > 20 && level < 235)";
    assert_eq!(browser.run(mixed), false);
    browser.click("#smooth");
    browser.run("document.querySelector('#split').value = 100; document.querySelector('#split').dispatchEvent(new Event('input'))");
    assert_eq!(browser.run(mixed), true);
    browser.click("#smooth");
    let scale = || browser.text("#scale").trim_end_matches('%').parse::<f64>().unwrap();
    let fit = scale();
    browser.press("+");
    assert_eq!(scale(), 1600.0);
    browser.press("0");
    assert_eq!(scale(), fit);
    browser.wheel(browser.place(0.5, 0.5), -100);
    assert!(scale() > fit);
    // The edge goes with the pointer.
    assert_eq!((browser.color(0.45, 0.5), browser.color(0.55, 0.5)), (BLACK, WHITE));
    browser.drag("mouse", browser.place(0.5, 0.3), browser.place(0.4, 0.3));
    assert_eq!((browser.color(0.35, 0.5), browser.color(0.45, 0.5)), (BLACK, WHITE));
    browser.assert_no_errors();
}

#[test]
fn the_page_is_legible_everywhere_and_reached_by_keyboard() {
    let folder = TempDir::new().unwrap();
    let Some(browser) = Browser::open(&page(&folder)) else { return };
    browser.shows(0);
    for (scheme, is_dark) in [("light", false), ("dark", true)] {
        browser.color_scheme(scheme);
        let style = "const s = getComputedStyle(document.body); \
            const sum = (c) => c.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + +b, 0) / 3; \
            return sum(s.color) - sum(s.backgroundColor)";
        let contrast = browser.run(style).as_f64().unwrap();
        assert_eq!(contrast > 150.0, is_dark, "{contrast}");
        assert!(contrast.abs() > 150.0, "{contrast}");
        for width in [1300, 400] {
            browser.resize(width, 800);
            let fits =
                "document.documentElement.scrollWidth <= document.documentElement.clientWidth";
            browser.wait_for(fits);
        }
    }
    let mut reached = Vec::new();
    for _ in 0..14 {
        browser.press(TAB);
        let element =
            browser.run("const e = document.activeElement; return e.id || e.name || e.tagName");
        reached.push(element.as_str().unwrap().to_owned());
    }
    for name in [
        "view", "out", "in", "fit", "one", "smooth", "split", "back", "play", "next", "frame",
        "SUMMARY",
    ] {
        assert!(reached.iter().any(|element| element == name), "{name} is not in {reached:?}");
    }
    let unnamed = "return [...document.querySelectorAll('input, select, button')] \
        .filter((e) => !e.ariaLabel && !e.labels?.length && !e.textContent.trim()).length";
    assert_eq!(browser.run(unnamed), 0);
    browser.assert_no_errors();
}
