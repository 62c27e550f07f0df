// SPDX-License-Identifier: MPL-2.0

//! What GStreamer's latency tracer says of the element, in a process of its own, as tracers are chosen when GStreamer starts.

use std::process::Command;

use gst::prelude::*;

use super::pipelines;

const LENGTH: usize = 8;
const FRAMES: usize = 61;
const FRAME: f64 = 20.0;
/// Milliseconds for the model and for a busy machine.
const PROCESSING: f64 = 60.0;

/// The numbers `field`, in milliseconds, of the records `record` that contain `part`.
fn records(log: &str, record: &str, part: &str, field: &str) -> Vec<f64> {
    let lines = log.lines().filter(|line| line.contains(&format!(" {record},")) && line.contains(part));
    let number = |line: &str| {
        let rest = line.split(&format!(", {field}=(guint64)")).nth(1).expect(line);
        let digits = rest.split(|c: char| !c.is_ascii_digit()).next().expect(line);
        digits.parse::<f64>().expect(line) / 1e6
    };
    lines.map(number).collect()
}

#[test]
#[ignore = "run by the_latency_tracer_reads_true in a process of its own"]
fn a_traced_pipeline() {
    let overlap = std::env::var("OVERLAP").unwrap();
    let p = pipelines::pipeline(&format!(
        "videotestsrc is-live=true num-buffers={FRAMES} ! video/x-raw,format=GRAY8,width=32,height=24,framerate=50/1 ! \
         starsr ! queue max-size-buffers=0 ! fakesink sync=true"
    ));
    let element = p.by_name("s").unwrap();
    element.set_property_from_str("window-overlap", &overlap);
    pipelines::run_with(&p, || {
        let frames = element.property::<gst::Structure>("stats").get::<u64>("latency-frames").unwrap();
        assert_eq!(frames as usize, LENGTH - 1);
    });
}

/// Each frame's latency is that of its place in the window, never above what is declared. The tracer's events travel before their frames,
/// so one that came out before its frame would read too short, and one that stayed behind too long.
#[test]
fn the_latency_tracer_reads_true() {
    for overlap in [0, 2] {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "tracing::a_traced_pipeline", "--ignored"])
            .env("OVERLAP", overlap.to_string())
            .env("GST_TRACERS", "latency(flags=pipeline+element+reported)")
            .env("GST_DEBUG", "GST_TRACER:7")
            .env("GST_DEBUG_NO_COLOR", "1")
            .env("GST_DEBUG_FILE", &log)
            .output()
            .unwrap();
        assert!(status.status.success(), "{status:?}");
        let log = std::fs::read_to_string(log).unwrap();

        let declared = (LENGTH - 1) as f64 * FRAME;
        let reported = records(&log, "element-reported-latency", "element=(string)s,", "min");
        // Asked for anew once the caps are known.
        assert_eq!(reported.last().map(|ms| ms.round()), Some(declared), "{reported:?}");

        let stride = LENGTH - overlap;
        let measured = records(&log, "element-latency", "element=(string)s,", "time");
        assert_eq!(measured.len(), FRAMES);
        // The last ones leave at the end, earlier than others.
        let whole = FRAMES - LENGTH;
        let expected = |k: usize| (LENGTH - 1 - k % stride) as f64 * FRAME;
        let off: Vec<f64> = (0..whole).map(|k| measured[k] - expected(k)).collect();
        let wrong = off.iter().filter(|ms| !(-PROCESSING / 4.0..PROCESSING).contains(*ms)).count();
        println!("overlap {overlap}: declared {declared} ms, measured {:.0?} ms", &measured);
        assert!(wrong <= whole / 10, "{measured:?}, wrong by {off:?}");
        let late = measured.iter().filter(|ms| **ms > declared + PROCESSING).count();
        assert!(late <= FRAMES / 10, "{measured:?}");

        // From the source's pad to the sink's, where the frame waits for its turn to be shown.
        let whole_way = records(&log, "latency", "sink-element=(string)fakesink", "time");
        assert_eq!(whole_way.len(), FRAMES);
        let source = FRAME;
        let late = whole_way.iter().filter(|ms| **ms > declared + source + PROCESSING).count();
        println!("overlap {overlap}: the whole way {whole_way:.0?} ms");
        assert!(late <= FRAMES / 10, "{whole_way:?}");
    }
}
