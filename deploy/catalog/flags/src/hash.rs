//! The hash behind percentages and entity tags. What it gives must never change: a user who is in a rollout stays in it
//! across restarts, machines and releases.

/// FNV-1a over the bytes, then the finalizer of MurmurHash3: FNV alone leaves the high bits of short keys too alike.
pub fn hash(bytes: impl IntoIterator<Item = u8>) -> u64 {
    let mut hash = bytes
        .into_iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

/// Where a subject stands among the ten thousandths of a flag. The flag's key takes part, so that the first percent of one
/// flag are other people than the first percent of the next.
pub fn bucket(flag: &str, targeting_key: &str) -> u64 {
    hash(flag.bytes().chain([0]).chain(targeting_key.bytes())) % 10_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_never_change() {
        assert_eq!(hash([]), 0xefd0_1f60_ba99_2926);
        assert_eq!(
            [bucket("new-checkout", "alice"), bucket("new-checkout", "bob"), bucket("page-size", "alice")],
            [97, 2125, 2258]
        );
    }

    #[test]
    fn buckets_are_spread_evenly() {
        let mut tenths = [0_u32; 10];
        for subject in 0..100_000 {
            tenths[usize::try_from(bucket("flag", &format!("user-{subject}")) / 1000).unwrap()] += 1;
        }
        assert!(tenths.iter().all(|count| (9_700..=10_300).contains(count)), "{tenths:?}");
    }

    #[test]
    fn the_buckets_of_two_flags_are_independent() {
        let both = (0..100_000).filter(|subject| {
            let subject = format!("user-{subject}");
            bucket("a", &subject) < 5_000 && bucket("b", &subject) < 5_000
        });
        assert!((24_500..=25_500).contains(&both.count()));
    }
}
