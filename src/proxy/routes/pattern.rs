//! Which models a route is for. Pure.

use std::cmp::Reverse;
use std::fmt;

/// A model's name, in which each `*` stands for any characters, none included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    /// The pattern as it is written in the configuration.
    pub const fn new(text: String) -> Self {
        Self(text)
    }

    /// As it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it stands for one model alone.
    pub fn is_exact(&self) -> bool {
        !self.0.contains('*')
    }

    /// Whether it stands for `model`.
    pub fn matches(&self, model: &str) -> bool {
        let Some((first, rest)) = self.0.split_once('*') else {
            return self.0 == model;
        };
        let (middle, last) = rest.rsplit_once('*').unwrap_or(("", rest));
        let inside = model
            .strip_prefix(first)
            .and_then(|rest| rest.strip_suffix(last));
        // The earliest place of each piece leaves the most room for those after it.
        inside.is_some_and(|inside| {
            let mut rest = Some(inside);
            for piece in middle.split('*') {
                rest = rest.and_then(|rest| rest.split_once(piece).map(|(_, after)| after));
            }
            rest.is_some()
        })
    }

    /// Sorts patterns so that the first one that matches is the one that counts: exact names, then globs with the
    /// most characters beside their `*`, then by the alphabet.
    pub fn precedence(&self) -> impl Ord + use<'_> {
        let literal = self.0.chars().filter(|&c| c != '*').count();
        (!self.is_exact(), Reverse(literal), self.0.as_str())
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, model: &str) -> bool {
        Pattern::new(pattern.to_owned()).matches(model)
    }

    #[test]
    fn a_star_stands_for_anything_and_the_rest_for_itself() {
        for (pattern, model) in [
            ("gpt-5", "gpt-5"),
            ("gpt-*", "gpt-"),
            ("gpt-*", "gpt-4.1-2025-04-14"),
            ("*", "anything/at all"),
            ("*-Instruct*", "Qwen/Qwen3-Next-80B-A3B-Instruct-FP8"),
            ("a*b*c*d", "a-b-b-c-c-d"),
            ("openai/*-20b", "openai/gpt-oss-20b"),
        ] {
            assert!(matches(pattern, model), "{pattern} {model}");
        }
        for (pattern, model) in [
            ("gpt-5", "gpt-5-mini"),
            ("gpt-*", "openai/gpt-5"),
            ("*-20b", "gpt-oss-120b-x"),
            ("ab*ba", "aba"),
            ("a*b*b*c", "a-b-c"),
            ("a*bc*d", "ab-c-d"),
        ] {
            assert!(!matches(pattern, model), "{pattern} {model}");
        }
    }

    #[test]
    fn an_exact_name_comes_before_every_glob_and_the_longest_glob_before_others() {
        let mut patterns: Vec<_> = ["*", "gpt-*", "gpt-5*", "gpt-5", "a-*", "*-****"]
            .map(|text| Pattern::new(text.to_owned()))
            .into();
        patterns.sort_by(|a, b| a.precedence().cmp(&b.precedence()));
        let order: Vec<_> = patterns.iter().map(Pattern::as_str).collect();
        assert_eq!(order, ["gpt-5", "gpt-5*", "gpt-*", "a-*", "*-****", "*"]);
    }
}
