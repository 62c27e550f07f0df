// SPDX-License-Identifier: MPL-2.0

//! Memory of large arrays that is used again. New pages from the system often cost more time than
//! what is computed in them.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use parking_lot::Mutex;

/// Memory that was given back, for whoever asks next. Clones share it.
#[derive(Clone, Default)]
pub struct Buffers(Arc<Mutex<Vec<Vec<f32>>>>);

impl Buffers {
    /// `len` numbers of any finite or other value.
    ///
    /// Where nothing that was given back fits, all of it is freed first: so what is kept never
    /// comes on top of the most that was in use at once.
    pub fn lease(&self, len: usize) -> Lease {
        let mut kept = self.0.lock();
        let fitting = kept
            .iter()
            .enumerate()
            .filter(|(_, values)| (len..=len.saturating_mul(WASTE)).contains(&values.capacity()));
        let best = fitting.min_by_key(|(_, values)| values.capacity()).map(|(i, _)| i);
        let values = best.map(|i| kept.swap_remove(i));
        if values.is_none() {
            kept.clear();
        }
        drop(kept);
        let values = values.map(|mut values| {
            values.resize(len, 0.0);
            values
        });
        Lease { values: values.unwrap_or_else(|| vec![0.0; len]), home: self.clone() }
    }

    /// Frees what was given back.
    pub fn clear(&self) {
        self.0.lock().clear();
    }

    /// Keeps `values` for later.
    pub fn give(&self, values: Vec<f32>) {
        if values.capacity() > 0 {
            self.0.lock().push(values);
        }
    }
}

/// Gives the system back what the allocator keeps of freed memory: glibc keeps it for each thread
/// apart.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call takes no memory that is in use.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// How many times the memory that was asked for may be taken.
const WASTE: usize = 4;

/// Numbers in memory that goes back when they are dropped.
pub struct Lease {
    values: Vec<f32>,
    home: Buffers,
}

impl Lease {
    /// The numbers, which do not go back by themselves any more.
    pub fn into_vec(mut self) -> Vec<f32> {
        std::mem::take(&mut self.values)
    }
}

impl Deref for Lease {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.values
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.values
    }
}

impl AsRef<[f32]> for Lease {
    fn as_ref(&self) -> &[f32] {
        self
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.home.give(std::mem::take(&mut self.values));
    }
}

// Neither says anything of use.
impl std::fmt::Debug for Buffers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Buffers").field(&self.0.lock().len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(buffers: &Buffers) -> usize {
        buffers.0.lock().len()
    }

    #[test]
    fn memory_comes_back() {
        let buffers = Buffers::default();
        let first = buffers.lease(100);
        let place = first.as_ptr();
        drop(first);
        let mut again = buffers.lease(50);
        assert_eq!((again.as_ptr(), again.len()), (place, 50));
        again.fill(3.0);
        assert_eq!(kept(&buffers), 0);
        drop(again);
        assert_eq!(buffers.lease(100).as_ptr(), place);
        let own = buffers.lease(100).into_vec();
        assert_eq!((own.len(), kept(&buffers)), (100, 0));
        buffers.give(own);
        assert_eq!(kept(&buffers), 1);
    }

    #[test]
    fn the_best_fit_is_taken_and_what_fits_nothing_is_freed() {
        let buffers = Buffers::default();
        let (small, large) = (buffers.lease(100), buffers.lease(150));
        let place = small.as_ptr();
        drop((large, small));
        assert_eq!(buffers.lease(90).as_ptr(), place);
        assert_eq!(kept(&buffers), 2);
        let wider = buffers.lease(151);
        assert_eq!(kept(&buffers), 0);
        drop(wider);
        drop(buffers.lease(3));
        assert_eq!(kept(&buffers), 1, "a small array does not take a large one's memory");
        drop(buffers.lease(0));
        assert_eq!(kept(&buffers), 0);
    }
}
