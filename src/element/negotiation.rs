// SPDX-License-Identifier: MPL-2.0

//! Setting up for caps, and the latency that follows from them.

use std::sync::atomic::Ordering;

use gst::prelude::*;
use gst::subclass::prelude::*;

use starsr::upscaler::{self, Upscaler};

use super::bypass::{Load, check_overload};
use super::frames::{Reader, Writer};
use super::imp::{CAT, Starsr};
use super::loading;
use super::stream::Worker;

/// Assumed where the framerate is variable or unknown (0/1), to turn frames of latency into time.
const ASSUMED_FRAMERATE: (i32, i32) = (25, 1);

impl Starsr {
    /// Sets up for new caps. Frames of the old ones have left.
    pub(super) fn configure(
        &self,
        in_info: &gst_video::VideoInfo,
        out_info: &gst_video::VideoInfo,
    ) -> Result<(), gst::ErrorMessage> {
        if in_info.is_interlaced() {
            return Err(gst::error_msg!(
                gst::StreamError::WrongType,
                (
                    "starsr needs progressive video, but this is interlaced ({}). Put a deinterlacer in front: \
                     ... ! deinterlace ! starsr ! ...",
                    in_info.interlace_mode().to_str()
                )
            ));
        }
        let parts = self.with_stream(|s| {
            let model = s.worker.take().map(|w| w.upscaler.into_model()).or_else(|| s.model.take());
            (model, s.manifest.clone(), s.settings.clone())
        });
        let Some((model, manifest, settings)) = parts else {
            return Err(gst::error_msg!(gst::CoreError::StateChange, ("starsr is not started")));
        };
        // A refused setting has taken the model with it.
        let model = match model {
            Some(model) => model,
            None => self.load(&settings).map_err(|e| loading::message(&e))?.model,
        };
        let size = (in_info.width() as usize, in_info.height() as usize);
        let prompts = self.settings.lock().prompts();
        let upscaler = settings.upscaler().and_then(|asked| {
            let cancel = self.cancel.clone();
            Upscaler::new(model, &manifest, &asked, size.0, size.1, cancel)
        });
        let mut upscaler = upscaler.map_err(|e| loading::message(&e))?;
        let mut prepare = || {
            check_overload(settings.overload(), upscaler.window_mode())?;
            if let Some(available) = upscaler::memory_of_this_machine() {
                upscaler.fit_memory(available)?;
            }
            upscaler.set_prompts(&prompts)
        };
        match prepare() {
            Ok(cut) => self.prompts_set(cut),
            Err(e) => {
                self.with_stream(|s| s.model = Some(upscaler.into_model()));
                return Err(loading::message(&e));
            }
        }

        let threads = settings.threads();
        let reader = Reader::new(in_info, threads);
        let writer = Writer::new(out_info, upscaler.output_size(), threads);
        let (reader, writer) = match (reader, writer) {
            (Ok(reader), Ok(writer)) => (reader, writer),
            (Err(e), _) | (_, Err(e)) => {
                self.with_stream(|s| s.model = Some(upscaler.into_model()));
                return Err(gst::error_msg!(
                    gst::CoreError::Negotiation,
                    (
                        "No conversion from {} to {}: {}. Put a videoconvert in front or behind",
                        in_info.format(),
                        out_info.format(),
                        e.message
                    )
                ));
            }
        };
        let (latency, memory) = (upscaler.latency(), upscaler.memory_estimate());
        gst::info!(CAT, imp = self, "Takes about {} MiB of memory beside the weights", memory >> 20);
        self.with_stream(|s| {
            s.worker = Some(Worker {
                upscaler,
                prompts,
                separated: false,
                tile_size: None,
                load: Load::default(),
                reader,
                writer,
            });
            s.infos = Some((in_info.clone(), out_info.clone()));
            s.numbering.set_framerate(in_info.fps());
            s.refused = None;
            s.interrupted = None;
        });
        self.stats.lock().upscaler_replaced(memory);
        self.set_latency(latency, in_info.fps());
        Ok(())
    }

    /// Tells of caps that cannot be those of frames; the base class refuses them without a word.
    pub(super) fn check_caps(&self, caps: &gst::Caps) {
        let none = gst::Caps::new_empty();
        if gst_video::VideoInfo::from_caps(caps).is_ok() || self.is_refused(caps, &none) {
            return;
        }
        self.refuse(caps, &none);
        gst::element_imp_error!(
            self,
            gst::CoreError::Negotiation,
            ("There are no frames of {caps}: they would be larger than the 2 GiB that GStreamer allows, or one of the values is \
                 wrong. Give starsr smaller frames, or put a capsfilter with the right values in front")
        );
    }

    /// Sets up for the caps for which that was told to stop.
    pub(super) fn configure_if_interrupted(&self) -> Result<(), gst::FlowError> {
        let Some(infos) = self.with_stream(|s| s.interrupted.take()).flatten() else { return Ok(()) };
        let Err(message) = self.configure(&infos.0, &infos.1) else { return Ok(()) };
        if self.cancel.is_set() {
            self.with_stream(|s| s.interrupted = Some(infos));
            return Err(gst::FlowError::Flushing);
        }
        self.post_error_message(message);
        Err(gst::FlowError::NotNegotiated)
    }

    /// Whether these caps were refused last.
    pub(super) fn is_refused(&self, incaps: &gst::Caps, outcaps: &gst::Caps) -> bool {
        self.with_stream(|s| s.refused.as_ref().is_some_and(|(i, o)| i == incaps && o == outcaps))
            .unwrap_or(false)
    }

    /// Remembers that these caps are refused.
    pub(super) fn refuse(&self, incaps: &gst::Caps, outcaps: &gst::Caps) {
        self.with_stream(|s| s.refused = Some((incaps.clone(), outcaps.clone())));
    }

    fn set_latency(&self, frames: usize, fps: gst::Fraction) {
        let fps = if fps.numer() > 0 { fps } else { gst::Fraction::from(ASSUMED_FRAMERATE) };
        let (num, den) = (fps.numer().max(1) as u64, fps.denom().max(1) as u64);
        let time = (frames as u64).checked_mul(den).and_then(|n| gst::ClockTime::SECOND.mul_div_ceil(n, num));
        let nanoseconds = time.unwrap_or(gst::ClockTime::ZERO).nseconds();
        self.stats.lock().latency_frames = frames as u64;
        if self.latency.swap(nanoseconds, Ordering::SeqCst) != nanoseconds {
            gst::debug!(CAT, imp = self, "A frame waits for up to {frames} others");
            self.latency_changed();
        }
    }

    /// What the element adds to the pipeline's latency.
    pub(super) fn own_latency(&self) -> gst::ClockTime {
        let windows = gst::ClockTime::from_nseconds(self.latency.load(Ordering::SeqCst));
        windows.saturating_add(self.settings.lock().processing_latency())
    }

    /// Tells the application that latencies have to be asked for anew.
    pub(super) fn latency_changed(&self) {
        gst::info!(CAT, imp = self, "Latency is {}", self.own_latency());
        let _ = self.obj().post_message(gst::message::Latency::builder().src(&*self.obj()).build());
    }
}
