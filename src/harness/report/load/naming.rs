//! Policy and concurrency from the reference system's folder names. Pure.

/// What a folder's name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Named {
    /// The policy.
    pub policy: &'static str,
    /// Programs in flight.
    pub concurrency: usize,
}

/// How names begin, and which policy that is.
const PREFIXES: [(&str, &str); 6] = [
    ("thunderreact_c", "thunderreact"),
    ("continuum_c", "continuum"),
    ("baseline_c", "baseline"),
    ("tr", "thunderreact"),
    ("ct", "continuum"),
    ("bl", "baseline"),
];

impl Named {
    /// Reads `thunderreact_c64_20260104_070945` or `TR64`; `None` for another name.
    pub fn parse(name: &str) -> Option<Self> {
        let name = name.to_ascii_lowercase();
        let known = PREFIXES.iter();
        let mut read = known.filter_map(|(prefix, policy)| {
            let rest = name.strip_prefix(prefix)?;
            let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
            let ends = rest.get(digits.len()..)?;
            let whole = ends.is_empty() || ends.starts_with(['_', '-', '.']);
            let concurrency = digits.parse().ok().filter(|_| whole)?;
            Some(Self {
                policy,
                concurrency,
            })
        });
        read.next()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_conventions_are_read_and_other_names_are_not() {
        let read = |name| Named::parse(name).map(|named| (named.policy, named.concurrency));
        assert_eq!(
            read("thunderreact_c64_20260104_070945"),
            Some(("thunderreact", 64))
        );
        assert_eq!(
            read("continuum_c128_20260104_223636"),
            Some(("continuum", 128))
        );
        assert_eq!(read("BL32"), Some(("baseline", 32)));
        assert_eq!(read("trace7"), None);
        assert_eq!(read("blue32"), None);
        assert_eq!(read("ct"), None);
        assert_eq!(read("tr32x"), None);
    }
}
