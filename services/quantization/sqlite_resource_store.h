// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>

#include "services/quantization/clock.h"
#include "services/quantization/resource_store.h"
#include "services/quantization/sqlite_database.h"

namespace nibble {

// `database` is an OpenStoreDatabase(); it and `clock` must outlive the store.
std::unique_ptr<ResourceStore> MakeSqliteResourceStore(SqliteDatabase& database,
                                                       const Clock& clock);

}  // namespace nibble
