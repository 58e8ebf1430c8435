//! Tests of what is sent of gradients, and of what is left out until later.

use windlass_common::ids::ShardId;
use windlass_common::layout::{Initial, Variable};

use super::*;

const SHARDS: [u32; 3] = [1, 2, 5];
const CLIENT: ClientId = ClientId(3);

fn layout() -> Layout {
    let variable = |name, values| Variable::new(name, &[values], Initial::Zeros);
    Layout::new(vec![variable("a", 5000), variable("b", 10), variable("c", 3000)]).unwrap()
}

fn encoder(codec: &str, shards: u32) -> (Encoder, Placement, Codec) {
    let layout = layout();
    let placement = Placement::new(&layout, shards).unwrap();
    let codec = codec.parse().unwrap();
    (Encoder::new(codec, 1, &layout, &placement), placement, codec)
}

/// Whole numbers, so that nothing is rounded in sums; those of one call differ from those of another.
fn gradient(step: u64) -> Vec<f32> {
    (0..8010_u64).map(|i| ((i * 2_654_435_761 + step * 40_503) % 511) as f32 - 255.0).collect()
}

/// What shards decode, in the order of the flat buffer.
fn decoded(payloads: &[Payload], placement: &Placement, codec: Codec) -> Vec<f32> {
    let layout = layout();
    let mut flat = vec![f32::NAN; layout.total() as usize];
    for (shard, payload) in (0..).map(ShardId).zip(payloads) {
        let slices = placement.of_shard(shard);
        let lengths = || slices.iter().map(|slice| slice.len as usize);
        let mut values = vec![0.0; lengths().sum()];
        codec.decode_payload(lengths(), payload, &mut values).unwrap();
        let mut values = values.into_iter();
        for slice in slices {
            let start = layout.range(slice.variable).start + slice.start as usize;
            flat[start..start + slice.len as usize].fill_with(|| values.next().unwrap());
        }
    }
    flat
}

#[test]
fn shards_decode_the_same_however_many_they_are() {
    for codec in Codec::all().map(|codec| codec.to_string()) {
        let sent = SHARDS.map(|shards| {
            let (mut encoder, placement, codec) = encoder(&codec, shards);
            let steps = (0..3).map(|step| {
                let mut gradient = gradient(step);
                let payloads = encoder.encode(&mut gradient, CLIENT, Step(step));
                let sent = payloads.map_or_else(|| gradient.clone(), |p| decoded(&p, &placement, codec));
                encoder.settle(Feedback::Taken);
                sent.into_iter().map(f32::to_bits).collect::<Vec<_>>()
            });
            steps.collect::<Vec<_>>()
        });
        assert!(sent.iter().all(|of| *of == sent[0]), "{codec}");
    }
}

#[test]
fn whatever_is_left_out_is_sent_later_or_still_there() {
    let (mut encoder, placement, codec) = encoder("topk:1%", 2);
    let mut owed = vec![0.0; 8010];
    for step in 0..40 {
        let mut p = gradient(step);
        owed.iter_mut().zip(&p).for_each(|(owed, g)| *owed += g);
        let payloads = encoder.encode(&mut p, CLIENT, Step(step)).unwrap();
        assert_eq!(p, owed, "what was left out is added");
        let sent = decoded(&payloads, &placement, codec);
        assert!(sent.iter().filter(|v| **v != 0.0).count() <= 81, "a hundredth of each variable is sent");
        if step % 3 == 2 {
            // Of a push that does not count on the second shard all is left out there.
            encoder.settle(Feedback::Unused { shard: 1 });
            let of = placement.of_shard(ShardId(0));
            for slice in of {
                let from = layout().range(slice.variable).start + slice.start as usize;
                for i in from..from + slice.len as usize {
                    owed[i] -= sent[i];
                }
            }
        } else {
            owed.iter_mut().zip(&sent).for_each(|(owed, sent)| *owed -= sent);
        }
        encoder.settle(Feedback::Taken);
    }
}

#[test]
fn what_is_left_out_belongs_to_the_client_and_to_the_history() {
    let (mut encoder, ..) = encoder("sign", 2);
    let push = |encoder: &mut Encoder, client, feedback| {
        let mut p = gradient(0);
        encoder.encode(&mut p, ClientId(client), Step(0));
        encoder.settle(feedback);
        p
    };
    let first = push(&mut encoder, 0, Feedback::Taken);
    assert_eq!(first, gradient(0));
    assert_eq!(push(&mut encoder, 1, Feedback::Taken), first, "another client has left nothing out");
    let second = push(&mut encoder, 0, Feedback::Undone);
    assert_ne!(second, first);
    assert_eq!(push(&mut encoder, 0, Feedback::Taken), second, "a push that is made again is the same");
    assert_ne!(push(&mut encoder, 0, Feedback::Forget), second);
    assert_eq!(push(&mut encoder, 0, Feedback::Taken), first, "a history that is no more has left nothing");
}

#[test]
fn codecs_without_bias_add_nothing() {
    for codec in ["bf16", "f16", "int8-stochastic"] {
        let (mut encoder, ..) = encoder(codec, 2);
        for step in 0..2 {
            let mut p = gradient(step);
            encoder.encode(&mut p, CLIENT, Step(step)).unwrap();
            encoder.settle(Feedback::Taken);
            assert_eq!(p, gradient(step), "{codec}");
        }
    }
}

#[test]
fn memory_of_payloads_is_used_again_when_nobody_reads_them() {
    let (mut encoder, ..) = encoder("int8", 2);
    let addresses = |payloads: &[Payload]| payloads.iter().map(|p| p.as_ptr() as usize).collect::<Vec<_>>();
    let first = encoder.encode(&mut gradient(0), CLIENT, Step(0)).unwrap();
    let kept = addresses(&first);
    let second = encoder.encode(&mut gradient(1), CLIENT, Step(1)).unwrap();
    assert!(addresses(&second).iter().all(|a| !kept.contains(a)), "the first is still read");
    drop(first);
    let third = encoder.encode(&mut gradient(2), CLIENT, Step(2)).unwrap();
    assert!(addresses(&third).iter().all(|a| kept.contains(a)));
}

/// Slices are encoded in any order, each from a copy of its values.
fn slice_by_slice(encoder: &mut Encoder, gradient: &mut [f32], step: u64) -> Vec<Payload> {
    encoder.begin_slices(CLIENT, Step(step));
    let pieces: Vec<Vec<Range<usize>>> = (0..encoder.places.shards())
        .map(|shard| encoder.places.of(shard).iter().map(|piece| piece.flat.clone()).collect())
        .collect();
    let mut payloads = Vec::new();
    for (shard, pieces) in pieces.into_iter().enumerate().rev() {
        let mut slices: Vec<(usize, Vec<u8>)> = Vec::new();
        for (index, flat) in pieces.into_iter().enumerate().rev() {
            let mut values = gradient[flat.clone()].to_vec();
            slices.push((index, encoder.encode_slice(shard, index, &mut values).to_vec()));
            gradient[flat].copy_from_slice(&values);
        }
        slices.reverse();
        payloads.push(Payload::new(slices.into_iter().flat_map(|(_, bytes)| bytes).collect()));
    }
    payloads.reverse();
    payloads
}

/// Parts are encoded from the last to the first, each from a copy of its values; variables begin at 0, 5000 and 5010.
fn part_by_part(encoder: &mut Encoder, gradient: &mut [f32], step: u64) -> Vec<Payload> {
    const CUTS: [&[usize]; 3] =
        [&[0, 8010], &[0, 64, 2112, 5010, 5010 + 2944, 8010], &[0, 4992, 5000, 5010 + 64, 8010]];
    encoder.begin_parts(CLIENT, Step(step));
    for cut in CUTS[step as usize % CUTS.len()].windows(2).rev() {
        encoder.encode_part(cut[0], &mut gradient[cut[0]..cut[1]]);
    }
    encoder.end_parts()
}

#[test]
fn in_slices_and_in_parts_the_same_is_sent_and_left_out() {
    for codec in Codec::all().into_iter().filter(|codec| codec.is_elementwise() && *codec != Codec::F32) {
        for shards in SHARDS {
            let mut encoders = [(); 3].map(|()| encoder(&codec.to_string(), shards).0);
            for step in 0..8 {
                let mut gradients = [(); 3].map(|()| gradient(step));
                let [whole, sliced, in_parts] = &mut encoders;
                let [one, two, three] = &mut gradients;
                assert!(Encoder::takes_parts(codec), "{codec}");
                let expected = whole.encode(one, CLIENT, Step(step)).unwrap();
                // The ways may follow each other.
                let in_slices = match step {
                    5 => sliced.encode(two, CLIENT, Step(step)).unwrap(),
                    _ => slice_by_slice(sliced, two, step),
                };
                if step == 4 {
                    // What was begun and not ended is void.
                    in_parts.begin_parts(CLIENT, Step(step));
                    in_parts.encode_part(5000, &mut [1e9; 10]);
                }
                let in_parts = part_by_part(in_parts, three, step);
                for found in [in_slices, in_parts] {
                    assert_eq!(found, expected, "{codec}, {shards} shards, step {step}");
                }
                assert!(
                    gradients.iter().all(|of| *of == gradients[0]),
                    "{codec}: what was left out is added"
                );
                for encoder in &mut encoders {
                    if step == 2 {
                        encoder.settle(Feedback::Unused { shard: 0 });
                    }
                    encoder.settle(if step == 3 { Feedback::Undone } else { Feedback::Taken });
                }
            }
        }
    }
}

#[test]
fn all_of_a_push_that_does_not_count_is_left_out() {
    for codec in Codec::all().into_iter().filter(|codec| codec.is_biased()) {
        for shards in SHARDS {
            let (mut encoder, ..) = encoder(&codec.to_string(), shards);
            taken(&mut encoder, 3, 0);
            let mut p = gradient(1);
            encoder.encode(&mut p, CLIENT, Step(1));
            // Said once more, nothing comes of it.
            for shard in (0..shards as usize).chain(0..shards as usize) {
                encoder.settle(Feedback::Unused { shard });
            }
            encoder.settle(Feedback::Taken);
            let left = encoder.residuals[&CLIENT].values.clone().floats(&encoder.places).clone();
            let largest = p.iter().fold(1.0, |largest: f32, p| largest.max(p.abs()));
            for (left, p) in left.iter().zip(&p) {
                // What is kept in blocks is as exact as the largest of a block would be.
                let size = if codec.is_narrow() { largest } else { p.abs().max(1.0) };
                assert!((left - p).abs() <= f32::EPSILON * size, "{codec}: {left} {p}");
            }
        }
    }
}

#[test]
fn after_a_push_that_never_was_the_next_leaves_out_what_it_should() {
    for codec in Codec::all().into_iter().filter(|codec| codec.is_biased()) {
        let (mut encoder, placement, _) = encoder(&codec.to_string(), 2);
        taken(&mut encoder, 3, 0);
        encoder.encode(&mut gradient(1), CLIENT, Step(1));
        // One shard says that it does not count before it turns out that it never was.
        encoder.settle(Feedback::Unused { shard: 0 });
        encoder.settle(Feedback::Undone);
        let mut p = gradient(2);
        let payloads = encoder.encode(&mut p, CLIENT, Step(1)).unwrap();
        encoder.settle(Feedback::Taken);
        let left = encoder.residuals[&CLIENT].values.clone().floats(&encoder.places).clone();
        let largest = p.iter().fold(0.0, |largest: f32, p| largest.max(p.abs()));
        for ((left, p), sent) in left.iter().zip(&p).zip(decoded(&payloads, &placement, codec)) {
            assert!((p - sent - left).abs() <= f32::EPSILON * largest, "{codec}: {p}, {sent}, {left}");
        }
    }
}

/// Pushes for a client in a step, whose push is taken; what was encoded.
fn taken(encoder: &mut Encoder, client: u32, step: u64) -> Vec<f32> {
    let mut p = gradient(step);
    encoder.encode(&mut p, ClientId(client), Step(step));
    encoder.settle(Feedback::Taken);
    p
}

#[test]
fn another_encoder_goes_on_with_what_was_given() {
    for (codec, shards) in ["topk:1%", "int8"].into_iter().flat_map(|codec| SHARDS.map(|n| (codec, n))) {
        let (mut encoder, ..) = encoder(codec, shards);
        let (mut other, ..) = self::encoder(codec, shards);
        (0..3).for_each(|step| drop(taken(&mut encoder, 3, step)));
        taken(&mut encoder, 4, 0);
        for shard in 0..shards as usize {
            let given = encoder.give(shard, AsOf::Now, false);
            assert_eq!(given.len(), 2, "each client's");
            for (client, values) in given {
                assert!(other.recall(shard, client, &values).is_ok());
                assert!(other.recall(shard, client, &values[1..]).is_err(), "it is too short");
            }
            assert!(encoder.give(shard, AsOf::Now, false).is_empty(), "the shard has it");
            assert_eq!(encoder.give(shard, AsOf::Now, true).len(), 2, "it wants it again");
        }
        assert_eq!(taken(&mut encoder, 3, 3), taken(&mut other, 3, 3));
        assert_eq!(encoder.give(0, AsOf::Now, false).len(), 1, "one has changed");
        // Who knows better takes no notice.
        let expected = taken(&mut encoder, 3, 4);
        let zeros = vec![0.0; other.places.of(0).iter().map(|piece| piece.flat.len()).sum()];
        assert!(other.recall(0, CLIENT, &zeros).is_ok());
        assert_eq!(taken(&mut other, 3, 4), expected);
    }
}

/// A shard may ask for a checkpoint before it has told what it knows.
#[test]
fn a_shard_that_has_not_told_yet_is_given_nothing_where_another_has() {
    let (mut encoder, ..) = encoder("topk:1%", 2);
    let (mut other, ..) = self::encoder("topk:1%", 2);
    taken(&mut encoder, 3, 0);
    let told = [0, 1].map(|shard| encoder.give(shard, AsOf::Now, true).remove(0));
    let [first, second] = &told;
    assert!(other.recall(0, first.0, &first.1).is_ok());
    for all in [true, false] {
        assert_eq!(other.give(1, AsOf::Now, all), [], "it would be zeros");
        assert_eq!(other.give(0, AsOf::Now, all).len(), usize::from(all), "it has told it itself");
    }
    assert!(other.recall(1, second.0, &second.1).is_ok());
    assert_eq!(other.give(1, AsOf::Now, true), std::slice::from_ref(second));
    taken(&mut other, 3, 1);
    assert_eq!([0, 1].map(|shard| other.give(shard, AsOf::Now, false).len()), [1, 1], "it is its own now");
}

#[test]
fn in_a_round_what_was_before_it_is_known_until_the_next() {
    let (encoder, ..) = encoder("sign", 2);
    let mut encoder = encoder.in_rounds();
    taken(&mut encoder, 3, 0);
    let before = encoder.give(0, AsOf::Now, true);
    let first = taken(&mut encoder, 3, 1);
    taken(&mut encoder, 4, 1);
    assert_eq!(encoder.give(0, AsOf::Before(Step(1)), true), before, "client 4 had left out nothing");
    assert_eq!(encoder.give(0, AsOf::Before(Step(2)), true).len(), 2, "round 1 is over by then");
    assert_eq!(taken(&mut encoder, 3, 1), first, "the first came to nothing");
    let after = encoder.give(0, AsOf::Now, true);
    taken(&mut encoder, 4, 2);
    assert_eq!(encoder.give(0, AsOf::Before(Step(2)), true), after, "round 2 is not in it");
}
