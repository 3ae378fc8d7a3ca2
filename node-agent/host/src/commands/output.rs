//! What `pillion` writes for people.

use std::{collections::BTreeMap, time::Duration};

use indicatif::{ProgressBar, ProgressStyle};
use pillion_protocol::name::Name;

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
                eprintln!("the worker was started again (pid {pid}, restart {restarts})")
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
            Event::Ready { component, binding, urls, digest, compiled, seconds, .. } => {
                let how = if *compiled { format!("ready, compiled in {seconds:.1} s") } else { "ready".into() };
                let again = self.serving && self.is_new(binding, urls, &how);
                self.note(binding, urls.join(" "), how);
                if again {
                    println!("{component}: a new version is served ({digest}, {seconds:.1} s)");
                }
            }
            Event::Failed { component, binding, port, message, .. } => {
                self.say(&format!("error: {component}: {message}"));
                if !self.serving {
                    self.note(binding, format!("http://localhost:{port}"), "failed".into());
                }
            }
            Event::Serving { .. } => {
                self.bar.take();
                if !self.serving {
                    self.serving = true;
                    self.table();
                }
            }
            Event::Drained { requests } => eprintln!("drained: {requests} requests were served by this worker"),
        }
    }

    /// A worker that starts again tells everything again.
    fn is_new(&self, binding: &Name, urls: &[String], how: &str) -> bool {
        how != "ready" || self.lines.get(binding).is_none_or(|line| line.url != urls.join(" "))
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
            Some(bar) => bar.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
        }
    }

    fn table(&self) {
        let width = |column: fn((&Name, &Line)) -> usize, title: &str| {
            self.lines.iter().map(column).chain([title.len()]).max().unwrap_or(0)
        };
        let names = width(|(name, _)| name.as_str().len(), "COMPONENT");
        let urls = width(|(_, line)| line.url.len(), "URL");
        println!("{:names$}  {:urls$}  STATE", "COMPONENT", "URL");
        for (name, Line { url, state }) in &self.lines {
            println!("{name:names$}  {url:urls$}  {state}");
        }
    }
}
