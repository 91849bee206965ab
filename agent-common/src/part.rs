//! Where the time of a token goes: its parts, and the clock of an engine by which they are told.

use crate::{
    copying::Copying,
    plain,
    request::RequestKey,
    step::{Model, StepEvent},
};

crate::named! {
    /// A part of the gap of a token: of the time from the token before it of the same sequence, or from the arrival of its
    /// request, to itself. The parts of a gap add up to it. The name is the value of the `part` label.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
    #[repr(u8)]
    pub enum Part {
        /// From arrival, or from the end of `load`, until the request takes a slot; of a first token only. It is not the
        /// kernel's: who arrived is known elsewhere.
        Queue = "queue",
        /// The server's own work between decode calls.
        Host = "host",
        /// From a decode call of a draft model to the next of the model itself.
        Draft = "draft",
        /// Decode calls, as far as they took longer for the request's own prompt; of a first token only.
        OwnPrefill = "own_prefill",
        /// Decode calls, as long as they take without anybody's prompt in them.
        Decode = "decode",
        /// Decode calls, as far as they took longer for the prompts of others.
        NeighbourPrefill = "neighbour_prefill",
        /// The token's own sampling, grammar included.
        Sampling = "sampling",
        /// Sampling for others.
        OthersSampling = "others_sampling",
        /// From arrival until the server has loaded its model again, which slept; of a first token only. It is not the
        /// kernel's, either, which has no room for it.
        Load = "load",
    }
}

impl Part {
    /// How many of them the kernel has room for: those before the last.
    pub const COUNTED: usize = Self::Load as usize;
}

/// Nanoseconds by [`Part`], as the kernel counts them.
pub type Parts = [u64; Part::COUNTED];

/// The number of the largest of parts; the first of several.
#[inline(always)]
pub fn largest(parts: &Parts) -> u32 {
    let (mut most, mut ns) = (0, 0);
    for (at, part) in parts.iter().enumerate() {
        if *part > ns {
            (most, ns) = (at as u32, *part);
        }
    }
    most
}

crate::numbered! {
    /// What an engine does.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    #[repr(u32)]
    pub enum Doing {
        /// Work of the server between decode calls.
        Host,
        /// Work of a draft model.
        Draft,
        /// A decode call of the model; also its time without what it took longer for prompts.
        Decode,
        /// Never under way: what decode calls took longer for prompts.
        Prefill,
        /// From the logits of a decode call to a token.
        Sampling,
        /// The cache of a sequence is saved or restored. The server's own work, too, but told apart.
        Copy,
    }
}

/// Room for sums by [`Doing`]: a power of two.
pub const DOINGS: usize = 8;

/// Nanoseconds by [`Doing`].
pub type Sums = [u64; DOINGS];

const _: () = assert!(Doing::COUNT <= DOINGS && DOINGS.is_power_of_two());

/// Batches of how many tokens that are no prompt have a duration of their own; larger ones share the last. A power of two.
pub const USUALS: usize = 128;

/// The same for the server's own work before them, by binary digits: it grows with the slots, and differs less. A power of two.
pub const HOSTS: usize = 8;

/// How long something usually takes: a running median.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(serde::Serialize, serde::Deserialize))]
#[repr(C)]
pub struct Usual {
    /// The median, nanoseconds.
    pub ns: u64,
    /// Of how many observations; 0 when there is none yet.
    pub seen: u64,
}

/// What the engine of a server has spent its time on. At every moment the sums add up to the time since it was first seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Clock {
    /// Up to when the sums go, `CLOCK_MONOTONIC` nanoseconds; 0 before the first.
    pub at_ns: u64,
    /// Time by what it was spent on.
    pub sums: Sums,
    /// When the decode call under way was entered.
    pub entered_ns: u64,
    /// The same of the last one that is over.
    pub over_ns: u64,
    /// How much longer that took for the prompts in it.
    pub excess_ns: u64,
    /// The sum of the server's own work up to which it is known for whom that was.
    pub host_ns: u64,
    /// When the last decode call was entered, if prompts were in it and others were on slots; else 0.
    pub shared_ns: u64,
    /// The request that took a slot since then, the last of several.
    pub launched: RequestKey,
    /// When; 0 if there is none.
    pub launched_ns: u64,
    /// A [`Doing`].
    pub doing: u32,
    /// Requests on slots.
    pub running: u32,
    /// Prompt tokens in the decode call under way.
    pub prompt: u32,
    /// Its other tokens.
    pub rest: u32,
    /// Prompt tokens in the last one that is over.
    pub over_prompt: u32,
    /// Always 0.
    pub reserved: u32,
    /// The copy of a cache under way.
    pub copying: Copying,
    /// The last decode call of each [`Model`], where they are told, until it is.
    pub steps: [StepEvent; Model::COUNT],
    /// How long decode calls without prompt take, by their tokens.
    pub usuals: [Usual; USUALS],
    /// The server's own work between two such calls, by how many binary digits the tokens of the second have.
    pub hosts: [Usual; HOSTS],
}

impl Clock {
    /// One that was not seen to do anything.
    pub const BLANK: Self = Self {
        at_ns: 0,
        sums: [0; DOINGS],
        entered_ns: 0,
        over_ns: 0,
        excess_ns: 0,
        host_ns: 0,
        shared_ns: 0,
        launched: RequestKey { arrived_ns: 0, tgid: 0, fd: 0 },
        launched_ns: 0,
        doing: Doing::Host as u32,
        running: 0,
        prompt: 0,
        rest: 0,
        over_prompt: 0,
        reserved: 0,
        copying: Copying::NONE,
        steps: [StepEvent::NONE; Model::COUNT],
        usuals: [Usual { ns: 0, seen: 0 }; USUALS],
        hosts: [Usual { ns: 0, seen: 0 }; HOSTS],
    };
}

plain!(Usual = 16, Clock = 216 + 8 * DOINGS + 16 * (USUALS + HOSTS));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_part_is_the_first_of_those() {
        let mut parts = Parts::default();
        assert_eq!(Part::from_wire(largest(&parts)), Some(Part::Queue));
        parts[Part::Sampling as usize] = 3;
        parts[Part::Host as usize] = 3;
        assert_eq!(Part::from_wire(largest(&parts)), Some(Part::Host));
    }
}
