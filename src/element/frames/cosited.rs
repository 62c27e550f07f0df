// SPDX-License-Identifier: MPL-2.0

//! Chroma on the lines of luma, as HDR video and DV have it. GStreamer repeats it for the lines
//! between, as if it lay in their middle.

use super::BYTES_PER_PIXEL;

/// Where in a working pixel its chroma is.
const CHROMA: std::ops::Range<usize> = 4..8;

/// How many lines share one line of chroma that lies on the first of them; `None` where it does
/// not lie there.
pub(super) fn step(info: &gst_video::VideoInfo) -> Option<usize> {
    let sub = info.format_info().h_sub().get(1).copied().unwrap_or(0);
    let cosited = info.chroma_site().contains(gst_video::VideoChromaSite::V_COSITED);
    (info.is_yuv() && sub > 0 && cosited).then_some(1 << sub)
}

/// Gives the lines of a working frame, of `stride` bytes each, chroma between that of every
/// `step`-th. Behind the last of these it is repeated.
pub(super) fn interpolate(words: &mut [u8], stride: usize, step: usize) {
    let mut groups = words.chunks_exact_mut(stride).collect::<Vec<_>>();
    let mut groups = groups.chunks_mut(step).peekable();
    while let Some(group) = groups.next() {
        let (Some((above, between)), Some([below, ..])) = (group.split_first_mut(), groups.peek())
        else {
            return;
        };
        for (k, line) in (1..).zip(between) {
            mix(line, above, below, k as f32 / step as f32);
        }
    }
}

/// `line` gets the chroma of `above`, with the part `weight` of that of `below`.
fn mix(line: &mut [u8], above: &[u8], below: &[u8], weight: f32) {
    let pixels = |line| <[u8]>::chunks_exact(line, BYTES_PER_PIXEL).map(|pixel| &pixel[CHROMA]);
    let line = line.chunks_exact_mut(BYTES_PER_PIXEL).map(|pixel| &mut pixel[CHROMA]);
    for ((pixel, a), b) in line.zip(pixels(above)).zip(pixels(below)) {
        let words = a.chunks_exact(2).zip(b.chunks_exact(2));
        for (word, (a, b)) in pixel.chunks_exact_mut(2).zip(words) {
            let value = |word: &[u8]| f32::from(u16::from_ne_bytes([word[0], word[1]]));
            let mixed = value(a) + (value(b) - value(a)) * weight;
            word.copy_from_slice(&(mixed.round() as u16).to_ne_bytes());
        }
    }
}
