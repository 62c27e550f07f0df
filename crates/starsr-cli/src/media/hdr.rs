// SPDX-License-Identifier: MPL-2.0

//! The metadata of HDR10, which FFmpeg does not hand on with the frames that it decodes.

use std::path::Path;

use serde_json::Value;

use super::ffmpeg::ffprobe;
use super::probe::{Probe, fraction, index, word};

/// Units of GStreamer's caps: parts of the chromaticity range, and of 1 cd/m².
const CHROMATICITY: f64 = 50_000.0;
const LUMINANCE: f64 = 10_000.0;

/// What the caps of HDR10 say beside the colorimetry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hdr(Vec<(&'static str, String)>);

impl Hdr {
    /// That of the first frame of `input`; `None` where its video is not HDR10, or has none.
    pub fn of(input: &Path, probe: &Probe) -> Option<Self> {
        let video = probe.video().filter(|video| word(video, "color_transfer") == "smpte2084")?;
        let stream = index(video).to_string();
        let frame =
            ["-select_streams", &stream, "-read_intervals", "%+#1", "-show_entries", "frame"];
        let frames = ffprobe(input, &frame)?;
        Self::from_frame(frames["frames"].as_array()?.first()?)
    }

    fn from_frame(frame: &Value) -> Option<Self> {
        let sides = frame["side_data_list"].as_array()?;
        let side = |kind: &str| sides.iter().find(|side| word(side, "side_data_type") == kind);
        let display = side("Mastering display metadata").and_then(|side| {
            let chromaticities = [
                "red_x",
                "red_y",
                "green_x",
                "green_y",
                "blue_x",
                "blue_y",
                "white_point_x",
                "white_point_y",
            ]
            .map(|name| (name, CHROMATICITY));
            let luminances = ["max_luminance", "min_luminance"].map(|name| (name, LUMINANCE));
            let values = chromaticities.iter().chain(&luminances);
            let units = values.map(|(name, unit)| {
                fraction(word(side, name)).map(|value| (value * unit).round().to_string())
            });
            units.collect::<Option<Vec<_>>>().map(|units| units.join(":"))
        });
        let light = side("Content light level metadata").and_then(|side| {
            let level = |name: &str| side[name].as_u64();
            Some(format!("{}:{}", level("max_content")?, level("max_average")?))
        });
        let fields = [("mastering-display-info", display), ("content-light-level", light)];
        let known: Vec<_> =
            fields.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
        (!known.is_empty()).then_some(Self(known))
    }

    /// Completes the caps of decoded `video`.
    pub fn complete(&self, video: &mut gst::StructureRef) {
        for (name, value) in &self.0 {
            if !video.has_field(*name) {
                video.set(*name, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_frame_is_read() {
        let frame = json!({ "side_data_list": [
            { "side_data_type": "Mastering display metadata",
              "red_x": "34000/50000", "red_y": "16000/50000", "green_x": "13250/50000",
              "green_y": "34500/50000", "blue_x": "7500/50000", "blue_y": "3000/50000",
              "white_point_x": "15635/50000", "white_point_y": "16450/50000",
              "min_luminance": "1/10000", "max_luminance": "10000000/10000" },
            { "side_data_type": "Content light level metadata", "max_content": 1000, "max_average": 400 },
        ] });
        let display = "34000:16000:13250:34500:7500:3000:15635:16450:10000000:1";
        let expected = [("mastering-display-info", display), ("content-light-level", "1000:400")];
        let expected = expected.map(|(name, value)| (name, value.to_owned()));
        assert_eq!(Hdr::from_frame(&frame), Some(Hdr(expected.to_vec())));
        assert_eq!(Hdr::from_frame(&json!({ "side_data_list": [] })), None);
        assert_eq!(fraction("1/0"), None);
    }
}
