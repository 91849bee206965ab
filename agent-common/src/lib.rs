//! What the kernel programs and the agent must agree on: keys and values of the maps, events, attach cookies,
//! histogram bounds.
//!
//! Everything here is integers and arrays, `repr(C)`, without implicit padding; sizes are asserted at compile time.
//! Bytes from the other side become enums only through the checked conversions here.
#![no_std]

pub mod batch;
pub mod call;
pub mod cookie;
pub mod copying;
mod enums;
pub mod event;
pub mod histogram;
pub mod layout;
pub mod loss;
pub mod part;
pub mod probe;
pub mod request;
pub mod sequence;
pub mod stall;
pub mod step;
pub mod target;
pub mod task;

/// Marks map keys and values that the agent may read and write as plain bytes.
macro_rules! plain {
    ($($type:ty = $size:expr),+ $(,)?) => {$(
        const _: () = assert!(size_of::<$type>() == $size, concat!("size of ", stringify!($type)));
        // SAFETY: `repr(C)`, integers and arrays of integers only, no padding (the size is asserted above).
        #[cfg(feature = "user")]
        unsafe impl aya::Pod for $type {}
    )+};
}
pub(crate) use plain;
