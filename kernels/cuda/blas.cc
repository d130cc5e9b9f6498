// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/blas.h"

#include <cublasLt.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <array>
#include <cmath>
#include <cstring>
#include <map>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/product_choices.h"

namespace nibble {
namespace {

// The functions that are used, by the names of the header; RTLD_NOW finds them or not at all.
struct Library {
  decltype(&cublasLtCreate) Create = nullptr;
  decltype(&cublasLtDestroy) Destroy = nullptr;
  decltype(&cublasLtMatmulDescCreate) DescCreate = nullptr;
  decltype(&cublasLtMatmulDescDestroy) DescDestroy = nullptr;
  decltype(&cublasLtMatmulDescSetAttribute) DescSet = nullptr;
  decltype(&cublasLtMatrixLayoutCreate) LayoutCreate = nullptr;
  decltype(&cublasLtMatrixLayoutDestroy) LayoutDestroy = nullptr;
  decltype(&cublasLtMatmulPreferenceCreate) PreferenceCreate = nullptr;
  decltype(&cublasLtMatmulPreferenceDestroy) PreferenceDestroy = nullptr;
  decltype(&cublasLtMatmulPreferenceSetAttribute) PreferenceSet = nullptr;
  decltype(&cublasLtMatmulAlgoGetHeuristic) Heuristic = nullptr;
  decltype(&cublasLtMatmulAlgoCheck) Check = nullptr;
  decltype(&cublasLtGetVersion) Version = nullptr;
  decltype(&cublasLtMatmul) Matmul = nullptr;

  static absl::StatusOr<Library> Open() {
    void* handle = nullptr;
    for (const char* name : {"libcublasLt.so.13", "libcublasLt.so.12"}) {
      if ((handle = dlopen(name, RTLD_NOW | RTLD_LOCAL)) != nullptr) break;
    }
    if (handle == nullptr) {
      return absl::NotFoundError(std::string("cuBLASLt is not there: ") + dlerror());
    }
    Library library;
    std::string missing;
    const auto find = [&](auto& function, const char* name) {
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(handle, name));
      if (function == nullptr) missing = name;
    };
    find(library.Create, "cublasLtCreate");
    find(library.Destroy, "cublasLtDestroy");
    find(library.DescCreate, "cublasLtMatmulDescCreate");
    find(library.DescDestroy, "cublasLtMatmulDescDestroy");
    find(library.DescSet, "cublasLtMatmulDescSetAttribute");
    find(library.LayoutCreate, "cublasLtMatrixLayoutCreate");
    find(library.LayoutDestroy, "cublasLtMatrixLayoutDestroy");
    find(library.PreferenceCreate, "cublasLtMatmulPreferenceCreate");
    find(library.PreferenceDestroy, "cublasLtMatmulPreferenceDestroy");
    find(library.PreferenceSet, "cublasLtMatmulPreferenceSetAttribute");
    find(library.Heuristic, "cublasLtMatmulAlgoGetHeuristic");
    find(library.Check, "cublasLtMatmulAlgoCheck");
    find(library.Version, "cublasLtGetVersion");
    find(library.Matmul, "cublasLtMatmul");
    if (!missing.empty()) return absl::NotFoundError("cuBLASLt has no function " + missing);
    return library;
  }
};

constexpr size_t kWorkspaceBytes = size_t{64} << 20;
constexpr int kCandidates = 6;  // of the library, that are timed
constexpr int kTimedRounds = 5;

cudaDataType_t TypeOf(DType type) {
  switch (type) {
    case DType::kBF16:
      return CUDA_R_16BF;
    case DType::kI8:
      return CUDA_R_8I;
    case DType::kF8E4M3:
      return CUDA_R_8F_E4M3;
    case DType::kI32:
      return CUDA_R_32I;
    default:
      return CUDA_R_32F;
  }
}

// What a plan depends on.
using Key = std::array<int64_t, 9>;
Key KeyOf(const Matmul& m) {
  return {m.m,
          m.n,
          m.k,
          m.lda,
          m.ldb,
          m.ldd,
          static_cast<int64_t>(m.in),
          static_cast<int64_t>(m.out),
          m.accumulate};
}
// What the choice of an algorithm depends on.
ProductKey BucketOf(const Matmul& m) {
  return {TokenBucket(m.m),           m.n, m.k, m.lda, m.ldb, m.ldd, static_cast<int64_t>(m.in),
          static_cast<int64_t>(m.out)};
}

static_assert(sizeof(ProductAlgorithm) == sizeof(cublasLtMatmulAlgo_t));

}  // namespace

struct Blas::Impl {
  // A product's descriptors, kept with the algorithm. The weight is the first operand and the
  // result is transposed: the library's matrices are column-major.
  struct Plan {
    cublasLtMatmulDesc_t desc = nullptr;
    cublasLtMatrixLayout_t a = nullptr, b = nullptr, d = nullptr;
    cublasLtMatmulAlgo_t algorithm{};
    cublasStatus_t status = CUBLAS_STATUS_SUCCESS;  // otherwise there is no algorithm, and no more
  };

  Library library;
  cudaStream_t stream = nullptr;
  Timer timer;
  ProductChoices choices{"", ""};
  cublasLtHandle_t handle = nullptr;
  void* workspace = nullptr;
  std::map<Key, Plan> plans;

  void Drop(Plan& plan) const {
    if (plan.d != nullptr) library.LayoutDestroy(plan.d);
    if (plan.b != nullptr) library.LayoutDestroy(plan.b);
    if (plan.a != nullptr) library.LayoutDestroy(plan.a);
    if (plan.desc != nullptr) library.DescDestroy(plan.desc);
    plan.d = plan.b = plan.a = nullptr;
    plan.desc = nullptr;
  }

  // A scale for each row of both operands: where the device and the library (12.9) have that mode.
  cublasStatus_t SetScales(const Matmul& m, const Plan& plan) const {
    if (m.in != DType::kF8E4M3) return CUBLAS_STATUS_SUCCESS;
    return SetScales(m, plan, CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F);
  }
  cublasStatus_t SetScales(const Matmul& m, const Plan& plan,
                           cublasLtMatmulMatrixScale_t wanted) const {
    const int32_t mode = wanted;
    cublasStatus_t status = CUBLAS_STATUS_SUCCESS;
    const auto set = [&](cublasLtMatmulDescAttributes_t attribute, const auto& value) {
      if (status == CUBLAS_STATUS_SUCCESS) {
        status = library.DescSet(plan.desc, attribute, &value, sizeof(value));
      }
    };
    set(CUBLASLT_MATMUL_DESC_A_SCALE_MODE, mode);
    set(CUBLASLT_MATMUL_DESC_B_SCALE_MODE, mode);
    set(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, m.b_scales);
    set(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, m.a_scales);
    return status;
  }

  ~Impl() {
    for (auto& [key, plan] : plans) Drop(plan);
    if (workspace != nullptr) cudaFree(workspace);
    if (handle != nullptr) library.Destroy(handle);
  }

  // Descriptors for a product of this shape.
  cublasStatus_t Describe(const Matmul& m, Plan& plan) const {
    const bool integer = m.in == DType::kI8;
    const cublasOperation_t transposed = CUBLAS_OP_T;
    const auto u = [](int64_t value) { return static_cast<uint64_t>(value); };
    cublasStatus_t status =
        library.DescCreate(&plan.desc, integer ? CUBLAS_COMPUTE_32I : CUBLAS_COMPUTE_32F,
                           integer ? CUDA_R_32I : CUDA_R_32F);
    const auto step = [&status](cublasStatus_t next) {
      if (status == CUBLAS_STATUS_SUCCESS) status = next;
    };
    if (status != CUBLAS_STATUS_SUCCESS) return status;
    step(library.DescSet(plan.desc, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof(transposed)));
    step(SetScales(m, plan));
    step(library.LayoutCreate(&plan.a, TypeOf(m.in), u(m.k), u(m.n), m.ldb));
    step(library.LayoutCreate(&plan.b, TypeOf(m.in), u(m.k), u(m.m), m.lda));
    step(library.LayoutCreate(&plan.d, TypeOf(m.out), u(m.n), u(m.m), m.ldd));
    return status;
  }

  // The library's first `most` choices for a shape.
  cublasStatus_t Ask(const Plan& plan, int most,
                     std::vector<cublasLtMatmulAlgo_t>* algorithms) const {
    cublasLtMatmulPreference_t preference = nullptr;
    cublasStatus_t status = library.PreferenceCreate(&preference);
    if (status != CUBLAS_STATUS_SUCCESS) return status;
    std::vector<cublasLtMatmulHeuristicResult_t> results(static_cast<size_t>(most));
    int found = 0;
    status = library.PreferenceSet(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                   &kWorkspaceBytes, sizeof(kWorkspaceBytes));
    if (status == CUBLAS_STATUS_SUCCESS) {
      status = library.Heuristic(handle, plan.desc, plan.a, plan.b, plan.d, plan.d, preference,
                                 most, results.data(), &found);
    }
    library.PreferenceDestroy(preference);
    if (status == CUBLAS_STATUS_SUCCESS && found == 0) status = CUBLAS_STATUS_NOT_SUPPORTED;
    for (int i = 0; i < found; ++i) algorithms->push_back(results[static_cast<size_t>(i)].algo);
    return status;
  }

  bool Takes(const Plan& plan, const cublasLtMatmulAlgo_t& algorithm) const {
    cublasLtMatmulHeuristicResult_t result{};
    return library.Check(handle, plan.desc, plan.a, plan.b, plan.d, plan.d, &algorithm, &result) ==
               CUBLAS_STATUS_SUCCESS &&
           result.state == CUBLAS_STATUS_SUCCESS && result.workspaceSize <= kWorkspaceBytes;
  }

  cublasStatus_t Run(const Matmul& m, const Plan& plan,
                     const cublasLtMatmulAlgo_t& algorithm) const {
    const float one = 1.0f, keep = m.accumulate ? 1.0f : 0.0f;
    const int32_t int_one = 1, int_none = 0;
    const bool integer = m.in == DType::kI8;
    return library.Matmul(handle, plan.desc, integer ? static_cast<const void*>(&int_one) : &one,
                          m.b, plan.a, m.a, plan.b,
                          integer ? static_cast<const void*>(&int_none) : &keep, m.d, plan.d, m.d,
                          plan.d, &algorithm, workspace, kWorkspaceBytes, stream);
  }

  // Whether products may be repeated to be timed: not while they are recorded, nor where each adds
  // to its result.
  bool MayTime(const Matmul& m) const {
    cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
    return cudaStreamIsCapturing(stream, &capture) == cudaSuccess &&
           capture == cudaStreamCaptureStatusNone && !m.accumulate;
  }

  // The fastest of the library's choices for the largest product of the bucket, timed on this
  // product, whose operands are there: it is computed some ten times over.
  bool TimeBucket(const Matmul& m, const Plan& plan, cublasLtMatmulAlgo_t* fastest) const {
    Matmul largest = m;
    largest.m = TokenBucket(m.m);
    Plan asked;
    std::vector<cublasLtMatmulAlgo_t> candidates;
    if (Describe(largest, asked) == CUBLAS_STATUS_SUCCESS) Ask(asked, kCandidates, &candidates);
    Drop(asked);
    const int64_t bytes = static_cast<int64_t>(BytesOf(m.in));
    const int products = ProductsPerSample(m.m, m.n, m.k, bytes);
    std::vector<double> seconds;
    for (const cublasLtMatmulAlgo_t& candidate : candidates) {
      seconds.push_back(NAN);
      if (!Takes(plan, candidate)) continue;
      const auto sample = [&] {
        for (int i = 0; i < products; ++i) {
          if (const cublasStatus_t status = Run(m, plan, candidate);
              status != CUBLAS_STATUS_SUCCESS) {
            return absl::InternalError(absl::StrCat("status ", static_cast<int>(status)));
          }
        }
        return absl::OkStatus();
      };
      const absl::StatusOr<double> measured = timer(sample, 1, kTimedRounds);
      if (measured.ok()) seconds.back() = *measured;
    }
    const int best = FastestCandidate(seconds);
    if (best >= 0) *fastest = candidates[static_cast<size_t>(best)];
    return best >= 0;
  }

  // CUBLAS_STATUS_NOT_SUPPORTED if there is no algorithm.
  cublasStatus_t Choose(const Matmul& m, Plan& plan) {
    const ProductKey key = BucketOf(m);
    if (const ProductAlgorithm* known = choices.Find(key)) {
      std::memcpy(&plan.algorithm, known->data(), sizeof(plan.algorithm));
      if (Takes(plan, plan.algorithm)) return CUBLAS_STATUS_SUCCESS;
    } else if (MayTime(m) && TimeBucket(m, plan, &plan.algorithm)) {
      ProductAlgorithm chosen;
      std::memcpy(chosen.data(), &plan.algorithm, sizeof(plan.algorithm));
      // Where no file can be written the choice lasts as long as the process.
      choices.Add(key, chosen).IgnoreError();
      std::memcpy(&plan.algorithm, choices.Find(key)->data(), sizeof(plan.algorithm));
      return CUBLAS_STATUS_SUCCESS;
    }
    std::vector<cublasLtMatmulAlgo_t> first;
    const cublasStatus_t status = Ask(plan, 1, &first);
    if (status == CUBLAS_STATUS_SUCCESS) plan.algorithm = first[0];
    return status;
  }
};

Blas::Blas(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Blas::~Blas() = default;

absl::StatusOr<std::unique_ptr<Blas>> Blas::Open(void* stream, const DeviceInfo& info,
                                                 const std::string& cache_directory, Timer timer) {
  auto library = Library::Open();
  if (!library.ok()) return library.status();
  auto impl = std::make_unique<Impl>();
  impl->library = *library;
  impl->stream = static_cast<cudaStream_t>(stream);
  impl->timer = std::move(timer);
  int driver = 0;
  cudaDriverGetVersion(&driver);
  impl->choices =
      ProductChoices(cache_directory, absl::StrCat(info.name, ", ", info.multiprocessors,
                                                   " multiprocessors; driver ", driver,
                                                   "; cuBLASLt ", impl->library.Version()));
  if (cudaMalloc(&impl->workspace, kWorkspaceBytes) != cudaSuccess) {
    return absl::ResourceExhaustedError("GPU memory: no 64 MiB for the workspace of cuBLASLt");
  }
  if (const cublasStatus_t status = impl->library.Create(&impl->handle);
      status != CUBLAS_STATUS_SUCCESS) {
    return absl::InternalError("cublasLtCreate failed with status " + std::to_string(status));
  }
  return std::unique_ptr<Blas>(new Blas(std::move(impl)));
}

std::vector<std::string> Blas::E4M3ScaleModes() const {
  constexpr std::pair<const char*, cublasLtMatmulMatrixScale_t> kModes[] = {
      {"tensor", CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F},
      {"row", CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F},
      {"32 elements, e8m0", CUBLASLT_MATMUL_MATRIX_SCALE_VEC32_UE8M0},
      {"128 elements", CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F},
      {"128 x 128 elements", CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F},
  };
  std::vector<std::string> modes;
  for (const auto& [name, mode] : kModes) {
    Matmul m;
    m.m = m.n = m.k = m.lda = m.ldb = m.ldd = 4096;
    m.in = DType::kF8E4M3;
    m.out = DType::kBF16;
    m.a_scales = m.b_scales = static_cast<const float*>(impl_->workspace);  // not read
    Impl::Plan plan;
    std::vector<cublasLtMatmulAlgo_t> found;
    if (impl_->Describe(m, plan) == CUBLAS_STATUS_SUCCESS &&
        impl_->SetScales(m, plan, mode) == CUBLAS_STATUS_SUCCESS &&
        impl_->Ask(plan, 1, &found) == CUBLAS_STATUS_SUCCESS) {
      modes.push_back(name);
    }
    impl_->Drop(plan);
  }
  return modes;
}

const std::string& Blas::note() const { return impl_->choices.note(); }

absl::Status Blas::Multiply(const Matmul& m) {
  Impl& impl = *impl_;
  auto found = impl.plans.find(KeyOf(m));
  if (found == impl.plans.end()) {
    Impl::Plan plan;
    plan.status = impl.Describe(m, plan);
    if (plan.status == CUBLAS_STATUS_SUCCESS) plan.status = impl.Choose(m, plan);
    if (plan.status != CUBLAS_STATUS_SUCCESS) impl.Drop(plan);
    found = impl.plans.emplace(KeyOf(m), plan).first;
  }
  const Impl::Plan& plan = found->second;
  if (plan.status != CUBLAS_STATUS_SUCCESS) {
    return absl::UnimplementedError(
        "cuBLASLt has no product of " + std::to_string(m.m) + " x " + std::to_string(m.k) + " by " +
        std::to_string(m.n) + " for these types (status " + std::to_string(plan.status) + ")");
  }
  if (const cublasStatus_t status = impl.SetScales(m, plan); status != CUBLAS_STATUS_SUCCESS) {
    return absl::InternalError("cuBLASLt takes no scales: status " + std::to_string(status));
  }
  const cublasStatus_t status = impl.Run(m, plan, plan.algorithm);
  if (status == CUBLAS_STATUS_SUCCESS) return absl::OkStatus();
  return absl::InternalError("cublasLtMatmul failed with status " + std::to_string(status));
}

}  // namespace nibble
