package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/yaml"
)

// TestKubernetes: the example's manifest is what Kubernetes' own types say, with no field that they do not know, and what it
// refers to is there. No cluster has run it.
func TestKubernetes(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "examples", "container", "kubernetes.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var service core.Service
	var deployment apps.Deployment
	into := map[string]any{"Service": &service, "Deployment": &deployment}
	for _, document := range bytes.Split(text, []byte("\n---\n")) {
		var is struct{ Kind string }
		if err := yaml.Unmarshal(document, &is); err != nil || into[is.Kind] == nil {
			t.Fatalf("%q, error %v: want a Service and a Deployment", is.Kind, err)
		}
		if err := yaml.UnmarshalStrict(document, into[is.Kind]); err != nil {
			t.Errorf("%s: %v", is.Kind, err)
		}
		delete(into, is.Kind)
		// A field that is mistyped would be found.
		if err := yaml.UnmarshalStrict(bytes.Replace(document, []byte("  selector:"), []byte("  selectors:"), 1), new(core.Service)); is.Kind == "Service" && err == nil {
			t.Error("a mistyped field is not found")
		}
	}
	if len(into) > 0 {
		t.Fatalf("missing: %v", into)
	}
	pod := deployment.Spec.Template
	for name, selector := range map[string]map[string]string{"service": service.Spec.Selector, "deployment": deployment.Spec.Selector.MatchLabels} {
		for key, value := range selector {
			if pod.Labels[key] != value {
				t.Errorf("%s: selects %s=%s, the pod's labels are %v", name, key, value, pod.Labels)
			}
		}
	}
	ports := map[intstr.IntOrString]bool{}
	container := pod.Spec.Containers[0]
	for _, port := range container.Ports {
		ports[intstr.FromString(port.Name)] = true
	}
	for _, port := range service.Spec.Ports {
		if !ports[port.TargetPort] {
			t.Errorf("the service's port %s goes to %v, which the container has not", port.Name, port.TargetPort)
		}
	}
	for name, probe := range map[string]*core.Probe{"startup": container.StartupProbe, "readiness": container.ReadinessProbe, "liveness": container.LivenessProbe} {
		if probe == nil || probe.HTTPGet == nil || !ports[probe.HTTPGet.Port] {
			t.Errorf("%s probe: %v", name, probe)
		}
	}
	mounted := map[string]bool{}
	for _, volume := range pod.Spec.Volumes {
		mounted[volume.Name] = true
	}
	for _, mount := range container.VolumeMounts {
		if !mounted[mount.Name] {
			t.Errorf("no volume %s", mount.Name)
		}
	}
	if service.Spec.SessionAffinity != core.ServiceAffinityClientIP || service.Spec.ExternalTrafficPolicy != core.ServiceExternalTrafficPolicyLocal {
		t.Errorf("clients keep neither their pod nor their address: %v, %v", service.Spec.SessionAffinity, service.Spec.ExternalTrafficPolicy)
	}
}
