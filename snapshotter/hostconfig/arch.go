package hostconfig

import "runtime"

// defaultArch is the architecture of the images that a host runs.
const defaultArch = runtime.GOARCH
