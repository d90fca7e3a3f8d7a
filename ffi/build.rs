//! Names the shared library as the header promises (the SONAME carries the major version), and aligns its segments for systems
//! with pages of 16 KiB.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let os = std::env::var("CARGO_CFG_TARGET_OS").unwrap_or_default();
    let major = std::env::var("CARGO_PKG_VERSION_MAJOR").unwrap_or_default();
    match os.as_str() {
        "linux" => {
            println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libloci.so.{major}");
            println!("cargo:rustc-cdylib-link-arg=-Wl,-z,max-page-size=16384");
        }
        // Android's loader and its packages know unversioned names only.
        "android" => {
            println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libloci.so");
            println!("cargo:rustc-cdylib-link-arg=-Wl,-z,max-page-size=16384");
        }
        _ => {}
    }
}
