//! The bindings that are given as examples do what they say, over the library as it is built here.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod common;

use common::native::{self, libraries, root, run};
use std::path::PathBuf;
use std::process::Command;

fn python(script: &str) -> Command {
    let mut command = Command::new("python3");
    command.arg(root().join(script)).env("LOCI_LIBRARY", libraries().join("libloci.so")).env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

fn model(dir: &tempfile::TempDir) -> PathBuf {
    let path = dir.path().join("model.gguf");
    std::fs::write(&path, native::chat_model()).unwrap();
    path
}

#[test]
fn python_does_what_its_file_says() {
    let dir = tempfile::tempdir().unwrap();
    let said = run(python("tests/python/binding.py").arg(model(&dir)).arg(dir.path()));
    assert!(said.is_empty(), "{said}");
    assert!(!run(python("examples/python/hello.py").arg(model(&dir)).arg("Where is the key?")).trim().is_empty());
}

/// The JNI layer of the Android example, on this machine's JVM, which checks every use of JNI and says what it does not like.
#[test]
fn java_does_what_the_native_class_says() {
    let dir = tempfile::tempdir().unwrap();
    let (build, classes) = (dir.path().join("build"), dir.path().join("classes"));
    let android = root().join("examples/android/loci/src/main");
    let javac = run(Command::new("sh").args(["-c", "readlink -f \"$(command -v javac)\""]));
    let home = std::path::Path::new(javac.trim()).ancestors().nth(2).expect("javac is installed (Debian: default-jdk-headless)");
    run(Command::new("cmake")
        .env("JAVA_HOME", home)
        .arg("-S")
        .arg(android.join("cpp"))
        .arg("-B")
        .arg(&build)
        .arg(format!("-DLOCI_INCLUDE={}", root().join("include").display()))
        .arg(format!("-DLOCI_LIBRARY={}", libraries().join("libloci.so").display())));
    run(Command::new("cmake").arg("--build").arg(&build));
    let mut javac = Command::new("javac");
    javac.args(["-Xlint:all", "-Werror", "--release", "17", "-d"]).arg(&classes);
    for class in ["Native", "Progress", "LociException"] {
        javac.arg(android.join("java/dev/loci").join(class).with_extension("java"));
    }
    run(javac.arg(root().join("tests/java/dev/loci/BindingTest.java")));
    // The library's own name, under which the JNI layer looks for it.
    std::os::unix::fs::symlink(libraries().join("libloci.so"), dir.path().join("libloci.so.0")).unwrap();
    let mut java = Command::new("java");
    java.args(["-Xcheck:jni", "-ea", "-cp"]).arg(&classes).arg(format!("-Djava.library.path={}", build.display()));
    java.env("LD_LIBRARY_PATH", dir.path()).arg("dev.loci.BindingTest").arg(model(&dir)).arg(dir.path());
    let out = native::output(&mut java);
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success() && said.is_empty(), "{}\n{said}", out.status);
}
