// The library: dev.loci over libloci.so. `make android` puts that into src/main/jniLibs/ABI and loci.h into src/main/cpp/include.
plugins {
    id("com.android.library")
    id("org.jetbrains.kotlin.android")
}

android {
    namespace = "dev.loci"
    compileSdk = 35
    defaultConfig {
        minSdk = 21
        ndk { abiFilters += listOf("arm64-v8a", "armeabi-v7a", "x86_64") }
        externalNativeBuild { cmake { arguments += "-DANDROID_SUPPORT_FLEXIBLE_PAGE_SIZES=ON" } }
    }
    externalNativeBuild { cmake { path = file("src/main/cpp/CMakeLists.txt") } }
    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_17
        targetCompatibility = JavaVersion.VERSION_17
    }
    kotlinOptions { jvmTarget = "17" }
}

dependencies { api("org.jetbrains.kotlinx:kotlinx-coroutines-android:1.9.0") }
