// C++: static construction, exceptions through frames and threads, iostreams, thread-local destructors, containers.
#include <algorithm>
#include <exception>
#include <fstream>
#include <future>
#include <iomanip>
#include <iostream>
#include <map>
#include <memory>
#include <numeric>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace {
struct Announced {
    explicit Announced(const char *name) : name_(name) { std::cout << "construct " << name_ << '\n'; }
    ~Announced() { std::cout << "destroy " << name_ << '\n'; }
    const char *name_;
};

Announced at_start("static object");

struct Failure : std::runtime_error {
    using std::runtime_error::runtime_error;
};

int descend(int depth) {
    std::string kept_alive(100, 'x');
    if (depth == 0)
        throw Failure("from the deepest frame");
    return descend(depth - 1) + static_cast<int>(kept_alive.size());
}

void exceptions() {
    try {
        descend(500);
    } catch (const std::exception &caught) {
        std::cout << "caught " << caught.what() << '\n';
    }
    int caught = 0;
    for (int i = 0; i < 10000; i++) {
        try {
            if (i % 3 == 0)
                throw i;
            std::vector<int>(3).at(7);
        } catch (int) {
            caught += 2;
        } catch (const std::out_of_range &) {
            caught += 1;
        }
    }
    std::cout << "ten thousand throws " << caught << '\n';
    try {
        std::unique_ptr<char[]> impossible(new char[1ULL << 62]);
        std::cout << "allocated the impossible\n";
    } catch (const std::bad_alloc &) {
        std::cout << "bad_alloc for 4 EiB\n";
    }
}

void threads() {
    std::vector<std::future<long>> parts;
    for (int part = 0; part < 8; part++)
        parts.push_back(std::async(std::launch::async, [part] {
            thread_local Announced *unused = nullptr;
            (void)unused;
            std::vector<long> values(100000);
            std::iota(values.begin(), values.end(), part * 100000L);
            return std::accumulate(values.begin(), values.end(), 0L);
        }));
    long total = 0;
    for (auto &part : parts)
        total += part.get();
    std::cout << "sum by threads " << total << '\n';
    auto failing = std::async(std::launch::async, []() -> int { throw Failure("crossed threads"); });
    try {
        failing.get();
    } catch (const Failure &caught) {
        std::cout << "caught " << caught.what() << '\n';
    }
    std::thread([] { thread_local Announced local("thread-local object"); local.name_ = "thread-local object"; }).join();
}

void streams() {
    std::map<std::string, int> counts;
    std::istringstream words("to be or not to be that is the question");
    for (std::string word; words >> word;)
        counts[word]++;
    for (const auto &[word, count] : counts)
        std::cout << std::setw(10) << std::left << word << count << '\n';
    std::cout << std::fixed << std::setprecision(6) << 3.14159265358979 << ' ' << std::hex << std::showbase << 48879
              << std::dec << '\n';
    std::ifstream exe("/proc/self/exe", std::ios::binary);
    char magic[4] = {};
    exe.read(magic, 4);
    std::cout << "own image is ELF: " << std::boolalpha << (std::string(magic + 1, 3) == "ELF") << '\n';
    std::string line;
    long lines = 0;
    while (std::getline(std::cin, line))
        lines++;
    std::cout << "lines on standard input " << lines << '\n';
}
} // namespace

int main() {
    exceptions();
    threads();
    streams();
    std::cerr << "a line on standard error" << std::endl;
}
