// SPDX-License-Identifier: MPL-2.0

//! Bundles in `gst-launch-1.0`, behind what feeds frames in other ways.

use std::path::Path;
use std::process::Command;

use starsr_testkit::fixtures;

/// Runs `bundle` with these settings on clips of so many frames: all come out, and in whatever way
/// they come in, as the same bytes.
pub fn same_bytes_for_any_feed<const N: usize>(bundle: &str, settings: &str, counts: [u64; N]) {
    let folder = tempfile::tempdir().unwrap();
    for count in counts {
        let launched = |feed| launched(folder.path(), bundle, settings, count, feed);
        let Some(plain) = launched("") else { return };
        assert_eq!(plain.len() as u64, count * 64 * 32 * 3 / 2, "{count} frames");
        for feed in [
            "queue max-size-buffers=3 !",
            "identity sleep-time=1000 !",
            "queue max-size-buffers=0 max-size-time=0 max-size-bytes=0 ! identity !",
        ] {
            assert!(plain == launched(feed).unwrap(), "{count} frames: {feed}");
        }
    }
}

/// The frames that `gst-launch-1.0` writes of `count` frames that `feed` brings to starsr with a
/// bundle and further `settings`, or `None` where the program is missing.
fn launched(
    folder: &Path,
    bundle: &str,
    settings: &str,
    count: u64,
    feed: &str,
) -> Option<Vec<u8>> {
    let out = folder.join("out");
    let description = format!(
        "videotestsrc num-buffers={count} pattern=ball ! \
         video/x-raw,format=I420,width=16,height=8,framerate=25/1 ! {feed} starsr \
         model-path={bundle} ort-library={} execution-provider=cpu threads=1 \
         {settings} ! \
         video/x-raw,format=I420 ! filesink location={}",
        fixtures::onnx_runtime().display(),
        out.display()
    );
    let exe = std::env::current_exe().unwrap();
    let plugins = exe.ancestors().nth(2).unwrap();
    let result = Command::new("gst-launch-1.0")
        .arg("-q")
        .args(description.split_whitespace())
        .env("GST_PLUGIN_PATH", plugins)
        .env("GST_REGISTRY", folder.join("registry"))
        .output();
    let output = match result {
        Ok(output) => output,
        Err(e) => {
            fixtures::skip(&format!("gst-launch-1.0 does not run: {e}"));
            return None;
        }
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(std::fs::read(out).unwrap())
}
