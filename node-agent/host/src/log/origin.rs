//! Who a guest is to the log.

use std::fmt;

use pillion_protocol::{id::ComponentId, name::Name, pod::Pod};

/// Whose guest it is: each line about one has these as fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The component.
    pub component: ComponentId,
    /// The component's part that it is of, where that is an application.
    pub part: Option<Box<str>>,
    /// The binding that it was called through.
    pub binding: Name,
    /// The pod that it is in; none on a laptop.
    pub pod: Option<Pod>,
}

impl Origin {
    /// A part of the same.
    #[must_use]
    pub fn part(&self, id: &str) -> Self {
        Self { part: Some(id.into()), ..self.clone() }
    }

    /// The pod's namespace.
    pub fn namespace(&self) -> Option<&str> {
        self.pod.as_ref().map(|pod| pod.namespace.as_str())
    }

    /// The pod's name.
    pub fn pod(&self) -> Option<&str> {
        self.pod.as_ref().map(|pod| pod.name.as_str())
    }

    /// The component's name, and its part's.
    pub fn component(&self) -> impl fmt::Display {
        fmt::from_fn(|f| match &self.part {
            Some(part) => write!(f, "{}/{part}", self.component.name),
            None => write!(f, "{}", self.component.name),
        })
    }

    /// The binding's name.
    pub fn binding(&self) -> &str {
        self.binding.as_str()
    }
}

/// [`tracing::event!`] about a guest: with the fields that say whose it is.
macro_rules! tell {
    (target: $target:expr, $level:ident, $origin:expr, $($rest:tt)+) => {{
        let origin: &$crate::log::Origin = $origin;
        tracing::event!(
            target: $target, tracing::Level::$level, namespace = origin.namespace(), pod = origin.pod(),
            component = %origin.component(), binding = origin.binding(), $($rest)+
        )
    }};
    ($level:ident, $origin:expr, $($rest:tt)+) => {
        $crate::log::tell!(target: module_path!(), $level, $origin, $($rest)+)
    };
}
pub(crate) use tell;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_named_behind_its_component() {
        let component = "shop/clock".parse().unwrap();
        let whole = Origin { component, part: None, binding: "b".parse().unwrap(), pod: None };
        assert_eq!(whole.component().to_string(), "clock");
        assert_eq!(whole.part("api").component().to_string(), "clock/api");
        assert_eq!((whole.namespace(), whole.pod()), (None, None));
    }
}
