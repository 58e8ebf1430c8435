//! Checks requests against the slices that a shard has.

use std::ops::Range;

use windlass_common::ids::ShardId;
use windlass_common::placement::Placement;
use windlass_common::plan::{BATCH_MAX, Codecs, WORK_MAX};
use windlass_common::wire::{Codec, Part, Pull, Push, Reject};

/// Which slices a shard has, which is all one needs in order to check a request.
#[derive(Clone, Debug)]
pub struct Shape {
    /// The shard.
    pub shard: ShardId,
    /// Its slices in the order of their numbers, each with its number within the run's placement and its length.
    pub parts: Vec<Part>,
    /// How values are written in pushes to it and in its answers to workers.
    pub codecs: Codecs,
}

impl Shape {
    /// The shape of one shard of a placement.
    pub fn new(placement: &Placement, shard: ShardId, codecs: Codecs) -> Self {
        Self { shard, parts: parts_of(placement, shard), codecs }
    }

    /// Values of all slices together.
    pub fn values(&self) -> u64 {
        self.parts.iter().map(|p| p.values).sum()
    }

    /// Whether a push announces every slice of this shard once, in any order and with its length, and a payload to match.
    ///
    /// # Errors
    /// Names the first slice that is not right.
    pub fn check_push(&self, push: &Push) -> Result<(), Reject> {
        if push.parts != self.parts {
            self.places(&push.parts)?;
        }
        check_codec(self.codecs.push, push.codec)?;
        let (least, most) = push.codec.payload_bytes(self.parts.iter().map(|p| p.values));
        let found = push.payload_bytes;
        if !(least..=most).contains(&found) {
            return Err(match least == most {
                true => Reject::WrongPayload { expected: least, found },
                false => Reject::PayloadRange { least, most, found },
            });
        }
        if push.examples == 0 {
            return Err(Reject::NoExamples);
        }
        if push.examples > BATCH_MAX {
            return Err(Reject::TooManyExamples { found: push.examples, most: BATCH_MAX });
        }
        if push.work == 0 || push.work > WORK_MAX {
            return Err(Reject::WrongWork { found: push.work, most: WORK_MAX });
        }
        Ok(())
    }

    /// Where these parts lie among the values of this shard, its slices end to end, if they are each of its slices once.
    ///
    /// # Errors
    /// Names the first slice that is not right.
    pub fn places(&self, parts: &[Part]) -> Result<Vec<Range<usize>>, Reject> {
        let mut end = 0;
        let own = self.parts.iter().map(|part| {
            end += part.values as usize;
            Some(end - part.values as usize..end)
        });
        let mut own: Vec<Option<Range<usize>>> = own.collect();
        let mut places = Vec::with_capacity(own.len());
        // What is longer than the shard is not gone through to its end.
        for part in parts.iter().take(own.len()) {
            let index = self.find(part.slice, Some(part.values))?;
            places.extend(own[index].take());
        }
        let expected = own.len() as u64;
        let found = if parts.len() == own.len() { places.len() } else { parts.len() } as u64;
        match found == expected {
            true => Ok(places),
            false => Err(Reject::Incomplete { shard: self.shard, expected, found }),
        }
    }

    /// Whether a worker asks for values as they are written in this run.
    ///
    /// # Errors
    /// If it asks for other ones.
    pub fn check_pull(&self, pull: &Pull) -> Result<(), Reject> {
        check_codec(self.codecs.pull, pull.codec)
    }

    /// Whether this shard has the slice, with this length if one is given.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn check_slice(&self, slice: u32, values: Option<u64>) -> Result<(), Reject> {
        self.find(slice, values).map(|_| ())
    }

    fn find(&self, slice: u32, values: Option<u64>) -> Result<usize, Reject> {
        let found = self.parts.binary_search_by_key(&slice, |part| part.slice);
        let index = found.map_err(|_| Reject::UnknownSlice { shard: self.shard, slice })?;
        let expected = self.parts[index].values;
        match values {
            Some(found) if found != expected => Err(Reject::WrongLength { slice, expected, found }),
            _ => Ok(index),
        }
    }
}

pub(super) fn parts_of(placement: &Placement, shard: ShardId) -> Vec<Part> {
    let all = (0_u32..).zip(placement.slices());
    all.filter(|(_, s)| s.shard == shard).map(|(slice, s)| Part { slice, values: s.len }).collect()
}

fn check_codec(expected: Codec, found: Codec) -> Result<(), Reject> {
    match expected == found {
        true => Ok(()),
        false => Err(Reject::WrongCodec { expected: expected.to_string(), found: found.to_string() }),
    }
}
