// istio-validate: one object on standard input, checked as Istio's own admission webhook does. Warnings count as errors.
package main

import (
	"fmt"
	"io"
	"os"

	"istio.io/istio/pilot/pkg/config/kube/crd"
	"istio.io/istio/pkg/config/schema/collections"
)

func run() error {
	text, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	objects, others, err := crd.ParseInputs(string(text))
	if err != nil {
		return err
	}
	if len(objects) != 1 || len(others) != 0 {
		return fmt.Errorf("not one object of Istio, but %d, and %d others", len(objects), len(others))
	}
	object := objects[0]
	schema, found := collections.PilotGatewayAPI().FindByGroupVersionAliasesKind(object.GroupVersionKind)
	if !found {
		return fmt.Errorf("%s is not known", object.GroupVersionKind)
	}
	warnings, err := schema.ValidateConfig(object)
	if err != nil {
		return err
	}
	if warnings != nil {
		return fmt.Errorf("warnings: %v", warnings)
	}
	return nil
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
