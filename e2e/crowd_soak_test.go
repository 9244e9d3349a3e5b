//go:build soak

package e2e

import "testing"

func TestSoakTwentyAtOnce(t *testing.T) { manyAtOnce(t, 20) }
