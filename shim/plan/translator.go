package plan

import (
	"errors"

	"github.com/applevm/applevm/config"
	guestv1 "github.com/applevm/applevm/guest/api/v1"
	"github.com/applevm/applevm/vmm"
)

// AnnotationTranslate says, as a boolean, whether programs of the other architecture run in the
// container, by the host's translator (vmm.Translator).
const AnnotationTranslate = "dev.applevm.translate"

// Translator is what a driver says of the host's translator.
type Translator struct {
	vmm.Translation
	Err error
}

// TranslatorOf asks a driver.
func TranslatorOf(drv vmm.Driver) (t Translator) {
	if d, ok := drv.(vmm.Translator); ok {
		t.Translation, t.Err = d.Translates()
	}
	return t
}

// translator decides whether the machine has it: the annotation, else the configuration. What the
// guest is told has, where there is none, what to do about that.
func translator(annotations map[string]string, m config.Machine, t Translator) (*guestv1.Translator, error) {
	on, given, err := boolAnnotation(annotations, AnnotationTranslate, m.Translate)
	if err != nil {
		return nil, err
	}
	by := "machine.translate in the configuration"
	if given {
		by = "annotation " + AnnotationTranslate
	}
	out := &guestv1.Translator{Arch: t.Arch}
	switch {
	case t.Arch == "":
		return nil, nil
	case !on:
		out.Missing = "set " + by + " to true"
	case errors.Is(t.Err, vmm.ErrNoTranslator):
		out.Missing = t.Err.Error()
	case t.Err != nil:
		return nil, unavailable("%w", t.Err)
	default:
		out.Share, out.Program, out.Daemon, out.Socket = vmm.TranslatorTag, t.Program, t.Daemon, vmm.TranslatorSocket
	}
	return out, nil
}
