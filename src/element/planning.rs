// SPDX-License-Identifier: MPL-2.0

//! What an application that restores a film in parts has to know beforehand: the bundle, the frames
//! that belong together, and the number of each frame.

use std::fs;

use gst::prelude::*;
use gst::subclass::prelude::*;
use sha2::{Digest, Sha256};

use starsr::Error;
use starsr::bundle::{MANIFEST, Manifest};
use starsr::scene::SceneDetector;
use starsr::upscaler;

use super::frames::Reader;
use super::numbering::Numbering;
use super::session::events::{ends_clip, is_scene_cut};
use super::{Starsr, loading};

/// Which frames have to be restored together.
pub type Context = upscaler::Context;

/// What the settings of an element stand for.
#[derive(Debug, Clone)]
pub struct Outline {
    /// Name of the bundle.
    pub model: String,
    /// SHA-256 of the bundle's manifest, which has the hashes of all other files; hexadecimal.
    pub model_sha256: String,
    /// How far frames depend on each other.
    pub context: Context,
    /// Whether windows end at scene cuts that are found.
    pub detects_scenes: bool,
}

impl Outline {
    /// That of `element`, from its properties and the bundle's manifest. Nothing is loaded.
    ///
    /// # Errors
    ///
    /// A sentence about a bundle that is missing or damaged, or settings that contradict it.
    pub fn new(element: &gst::Element) -> Result<Self, String> {
        let starsr = element.downcast_ref::<Starsr>().ok_or("the element is not starsr")?.imp();
        let settings = starsr.settings.lock().map_err(|error| error.to_string())?.clone();
        let failed = |error: Error| error.to_string();
        let file = loading::locate(&settings, element).map_err(failed)?.join(MANIFEST);
        let text = fs::read_to_string(&file)
            .map_err(|error| format!("{}: cannot be read: {error}", file.display()))?;
        let manifest = Manifest::parse(&text, &file).map_err(failed)?;
        let engine = settings.upscaler().map_err(failed)?;
        Ok(Self {
            context: Context::new(&engine, &manifest).map_err(failed)?,
            model: manifest.name,
            model_sha256: Sha256::digest(&text).iter().map(|byte| format!("{byte:02x}")).collect(),
            detects_scenes: settings.scene_detection,
        })
    }
}

/// Tells clips apart and numbers frames as the element does.
#[derive(Default)]
pub struct Scanner {
    /// `None` where cuts are not looked for.
    scenes: Option<SceneDetector>,
    numbering: Numbering,
    segment: Option<gst::Segment>,
    reader: Option<(gst_video::VideoInfo, Reader)>,
    /// Whether a clip has ended.
    ended: bool,
}

/// What a [`Scanner`] says of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scanned {
    /// The absolute number.
    pub number: u64,
    /// Whether a clip begins with the frame, so that nothing before it matters.
    pub begins_clip: bool,
}

impl Scanner {
    /// A scanner at the beginning of a stream.
    pub fn new(detects_scenes: bool) -> Self {
        Self { scenes: detects_scenes.then(SceneDetector::default), ended: true, ..Self::default() }
    }

    /// Takes the next serialized event of the stream. Those of caps go to [`Self::caps`].
    pub fn event(&mut self, event: &gst::EventRef) {
        if is_scene_cut(event) {
            self.end_scene();
        } else if ends_clip(event, self.segment.as_ref()) {
            self.end_clip();
        }
        match event.view() {
            gst::EventView::Segment(segment) => self.segment = Some(segment.segment().clone()),
            gst::EventView::StreamStart(_) => self.numbering.restart(),
            _ => {}
        }
    }

    /// Takes the format of the frames that follow.
    ///
    /// # Errors
    ///
    /// A sentence about a format that GStreamer does not convert.
    pub fn caps(&mut self, info: &gst_video::VideoInfo) -> Result<(), String> {
        if self.reader.as_ref().is_some_and(|(known, _)| known == info) {
            return Ok(());
        }
        if self.reader.is_some() {
            self.end_clip();
        }
        self.numbering.set_framerate(info.fps());
        let reader = Reader::new(info, 0).map_err(|error| error.to_string())?;
        self.reader = Some((info.clone(), reader));
        Ok(())
    }

    /// Takes the next frame.
    ///
    /// # Errors
    ///
    /// A sentence about a buffer that does not hold the frame, or that comes before its format.
    pub fn frame(&mut self, buffer: &gst::BufferRef) -> Result<Scanned, String> {
        let time = self.stream_time(buffer);
        if buffer.flags().contains(gst::BufferFlags::DISCONT) || self.numbering.is_jump(time) {
            self.end_clip();
        }
        if let Some(scenes) = &mut self.scenes {
            let (_, reader) = self.reader.as_mut().ok_or("a frame came before its format")?;
            let frame = reader.read(buffer).map_err(|error| error.to_string())?;
            if scenes.is_cut(frame.pixels.view()) {
                self.end_scene();
            }
        }
        let begins_clip = std::mem::take(&mut self.ended);
        Ok(Scanned { number: self.numbering.number(time), begins_clip })
    }

    fn end_scene(&mut self) {
        self.numbering.cut();
        self.ended = true;
    }

    fn end_clip(&mut self) {
        self.end_scene();
        if let Some(scenes) = &mut self.scenes {
            scenes.reset();
        }
    }

    fn stream_time(&self, buffer: &gst::BufferRef) -> Option<gst::ClockTime> {
        self.segment.as_ref()?.downcast_ref::<gst::ClockTime>()?.to_stream_time(buffer.pts()?)
    }
}
