// Inspect one frame with a bundle's graph and ONNX Runtime alone, without Python.
//
//     score GRAPH THRESHOLD FRAME.ppm
//
// GRAPH is model.onnx of a bundle that was exported with --frame-size, so that the graph takes the camera's pixels and
// does the preprocessing itself. THRESHOLD is the image threshold in the bundle's manifest. FRAME.ppm is a binary PPM
// (P6) of that size. The exit status is 0 for ok, 1 for anomalous or not inspected, and 2 for an error.

#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

struct Frame {
    int64_t height = 0, width = 0;
    std::vector<uint8_t> pixels;  // height x width x 3, RGB
};

Frame read_ppm(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::string kind;
    int64_t levels = 0;
    Frame frame;
    if (!(file >> kind >> frame.width >> frame.height >> levels) || kind != "P6" || levels != 255) {
        throw std::runtime_error(path + " is no binary PPM (P6) of 8 bits without comments");
    }
    if (frame.width < 1 || frame.height < 1 || frame.width > 16384 || frame.height > 16384) {
        throw std::runtime_error(path + " is not of 1 to 16384 pixels a side");
    }
    file.get();  // the one white space before the pixels
    frame.pixels.resize(static_cast<size_t>(frame.height * frame.width * 3));
    file.read(reinterpret_cast<char*>(frame.pixels.data()), static_cast<std::streamsize>(frame.pixels.size()));
    if (static_cast<size_t>(file.gcount()) != frame.pixels.size()) {
        throw std::runtime_error(path + " ends before its last pixel");
    }
    return frame;
}

int inspect(const std::string& graph, double threshold, const std::string& picture) {
    Frame frame = read_ppm(picture);
    Ort::Env environment(ORT_LOGGING_LEVEL_ERROR, "flowedge");
    Ort::Session session(environment, graph.c_str(), Ort::SessionOptions{});

    Ort::AllocatorWithDefaultOptions allocator;
    const std::string input = session.GetInputNameAllocated(0, allocator).get();
    if (input != "frame") {
        throw std::runtime_error(graph + " takes " + input + ", not frame. Export the bundle with --frame-size");
    }
    // The input is (N, H, W, 3), where N is open.
    const auto wanted = session.GetInputTypeInfo(0).GetTensorTypeAndShapeInfo().GetShape();
    if (wanted[1] != frame.height || wanted[2] != frame.width) {
        throw std::runtime_error(picture + " is " + std::to_string(frame.height) + "x" + std::to_string(frame.width) +
                                 ", and the graph takes " + std::to_string(wanted[1]) + "x" + std::to_string(wanted[2]));
    }

    const std::vector<int64_t> shape{1, frame.height, frame.width, 3};
    const auto memory = Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeCPU);
    const Ort::Value pixels = Ort::Value::CreateTensor<uint8_t>(memory, frame.pixels.data(), frame.pixels.size(),
                                                                shape.data(), shape.size());
    const char* const inputs[] = {"frame"};
    const char* const outputs[] = {"score", "anomaly_map"};
    const auto answers = session.Run(Ort::RunOptions{}, inputs, &pixels, 1, outputs, 2);

    const float score = *answers[0].GetTensorData<float>();
    const float* map = answers[1].GetTensorData<float>();
    const size_t count = answers[1].GetTensorTypeAndShapeInfo().GetElementCount();
    // A value that is not finite is smaller than every threshold, and must never let a part pass.
    const bool finite =
        std::isfinite(score) && std::all_of(map, map + count, [](float value) { return std::isfinite(value); });
    const char* verdict = !finite ? "not_inspected" : static_cast<double>(score) > threshold ? "anomalous" : "ok";
    std::printf("%s\t%.9g\n", verdict, static_cast<double>(score));
    return std::string(verdict) == "ok" ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 4) {
        std::cerr << "usage: score GRAPH THRESHOLD FRAME.ppm\n";
        return 2;
    }
    try {
        size_t read = 0;
        const std::string threshold = argv[2];
        const double value = std::stod(threshold, &read);
        if (read != threshold.size() || !std::isfinite(value)) {
            throw std::runtime_error(threshold + " is no threshold");
        }
        return inspect(argv[1], value, argv[3]);
    } catch (const std::exception& error) {
        std::cerr << error.what() << "\n";
        return 2;
    }
}
