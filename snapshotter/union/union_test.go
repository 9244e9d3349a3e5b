package union

import (
	"testing"

	. "github.com/applevm/applevm/internal/tartest"
	"github.com/applevm/applevm/manifest"
	"github.com/applevm/applevm/snapshotter/ext4"
)

var _ Layer = (*ext4.FS)(nil)

func TestUnderRefusesATreeThatIsNoDirectory(t *testing.T) {
	var m Merged
	if _, err := m.Under(OpenImage(t, Tar(t, File("f", "x"))), manifest.LayerRoot+"/f"); err == nil {
		t.Error("a file was taken for a layer's tree")
	}
}
