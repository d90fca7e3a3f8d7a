// c++ -std=c++17 hello.cpp -lloci && ./a.out model.gguf "Why is the sky blue?"
#include <loci.hpp>

#include <iostream>

int main(int argc, char **argv) try {
    if (argc < 2) {
        std::cerr << "usage: " << argv[0] << " MODEL.gguf [QUESTION]\n";
        return 2;
    }
    loci::Model model(argv[1]);
    loci::Session session(model);
    session.prompt(model.chat({{"user", argc > 2 ? argv[2] : "Why is the sky blue?"}}), LOCI_PARSE_SPECIAL);
    loci::GenerateOptions options;
    options.max_tokens = 200;
    session.generate(
        [](std::string_view text) {
            std::cout << text << std::flush;
            return true;
        },
        options);
    std::cout << '\n';
    return 0;
} catch (const loci::Error &error) {
    std::cerr << loci_status_name(error.status()) << ": " << error.what() << '\n';
    return 1;
}
