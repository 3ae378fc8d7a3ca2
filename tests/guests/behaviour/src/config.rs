//! `wasi:config`, which neither `wasip2` nor `wasip3` binds.

wit_bindgen::generate!({
    inline: "
        package wasi:config@0.2.0-rc.1;

        interface store {
            variant error {
                upstream(string),
                io(string),
            }
            get: func(key: string) -> result<option<string>, error>;
        }

        world reader {
            import store;
        }
    ",
    world: "reader",
});

/// The value of `key`, if it has one.
pub fn get(key: &str) -> Option<String> {
    wasi::config::store::get(key).ok().flatten()
}
