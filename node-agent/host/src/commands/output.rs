//! What `pillion` writes for people.

use std::{collections::BTreeMap, time::Duration};

use indicatif::{ProgressBar, ProgressStyle};
use pillion_protocol::{digest::Digest, name::Name};

use super::say;
use crate::supervisor::message::Event;

/// A bar for work on so many things. It shows itself only on a terminal.
pub(super) fn progress(length: usize) -> ProgressBar {
    let bar = ProgressBar::new(length as u64);
    if let Ok(style) = ProgressStyle::with_template("{spinner} {pos}/{len} {wide_msg} {elapsed}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

/// A bar for so many bytes. It shows itself only on a terminal.
pub(super) fn bytes() -> ProgressBar {
    let bar = ProgressBar::new(0);
    if let Ok(style) =
        ProgressStyle::with_template("{spinner} {wide_msg} {binary_bytes}/{binary_total_bytes} {elapsed}")
    {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

/// The state of a binding that answers nothing but errors.
const FAILED: &str = "failed";

/// What changed for a binding's callers, if anything did.
fn switched(before: Option<Digest>, now: Digest, failed: bool) -> Option<String> {
    match before {
        Some(before) if before == now => Some(format!("switched to new settings of {now}")),
        Some(before) => Some(format!("switched from {before} to {now}")),
        None if failed => Some(format!("is served now, {now}")),
        None => None,
    }
}

/// A binding's line in the table.
struct Line {
    url: String,
    state: String,
}

/// Events of a run, told to people: progress, then a table, then what changes.
pub(super) struct Told {
    bar: Option<ProgressBar>,
    lines: BTreeMap<Name, Line>,
    serving: bool,
}

impl Told {
    /// For a run of so many bindings.
    pub(super) fn new(bindings: usize) -> Self {
        Self { bar: Some(progress(bindings)), lines: BTreeMap::new(), serving: false }
    }

    /// Tells one event.
    pub(super) fn tell(&mut self, event: &Event) {
        match event {
            Event::Worker { restarts: 0, .. } => {}
            Event::Worker { pid, restarts } => {
                say::err(format_args!("the worker was started again (pid {pid}, restart {restarts})"))
            }
            Event::Pulling { component, image } => {
                if let Some(bar) = &self.bar {
                    bar.set_message(format!("pulling {image} for {component}"));
                }
            }
            Event::Pulled { .. } => {}
            Event::Compiling { component, .. } => {
                if let Some(bar) = &self.bar {
                    bar.set_message(format!("compiling {component}"));
                }
            }
            Event::Ready { component, binding, urls, digest, replaces, compiled, seconds, .. } => {
                let how = if *compiled { format!("ready, compiled in {seconds:.1} s") } else { "ready".into() };
                let failed = self.lines.get(binding).is_some_and(|line| line.state == FAILED);
                self.note(binding, urls.join(" "), how);
                // A worker that starts again tells everything again, and nothing of it is new.
                if self.serving
                    && let Some(switched) = switched(*replaces, *digest, failed)
                {
                    say::out(format_args!("{component}: {switched}, after {seconds:.1} s"));
                }
            }
            Event::Failed { component, binding, port, message, serves, .. } => {
                self.say(&format!("error: {component}: {message}"));
                match serves {
                    Some(serves) => self.say(&format!("{component}: what was served before is served on, {serves}")),
                    None => self.note(binding, format!("http://localhost:{port}"), FAILED.into()),
                }
            }
            Event::Serving { .. } => {
                self.bar.take();
                if !self.serving {
                    self.serving = true;
                    self.table();
                }
            }
            Event::Drained { requests } => {
                say::err(format_args!("drained: {requests} requests were served by this worker"))
            }
        }
    }

    fn note(&mut self, binding: &Name, url: String, state: String) {
        if self.lines.insert(binding.clone(), Line { url, state }).is_none()
            && let Some(bar) = &self.bar
        {
            bar.inc(1);
        }
    }

    fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| say::err(text)),
            None => say::err(text),
        }
    }

    fn table(&self) {
        let width = |column: fn((&Name, &Line)) -> usize, title: &str| {
            self.lines.iter().map(column).chain([title.len()]).max().unwrap_or(0)
        };
        let names = width(|(name, _)| name.as_str().len(), "COMPONENT");
        let urls = width(|(_, line)| line.url.len(), "URL");
        say::out(format_args!("{:names$}  {:urls$}  STATE", "COMPONENT", "URL"));
        for (name, Line { url, state }) in &self.lines {
            say::out(format_args!("{name:names$}  {url:urls$}  {state}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_switch_says_from_what_to_what() {
        let [one, two] = [1, 2].map(|byte| Digest::from_sha256([byte; 32]));
        for (before, failed, expected) in [
            (Some(one), false, Some(format!("switched from {one} to {two}"))),
            (Some(two), false, Some(format!("switched to new settings of {two}"))),
            (None, true, Some(format!("is served now, {two}"))),
            (None, false, None),
        ] {
            assert_eq!(switched(before, two, failed), expected);
        }
    }
}
