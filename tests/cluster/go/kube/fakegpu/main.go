// Command fakegpu is a device plugin without devices: it tells the kubelet of GPUs that are not there, so that what
// the scheduler and the kubelet do with pods that ask for one can be tested on any machine. A container that is
// given some finds their names in NVIDIA_VISIBLE_DEVICES, as it would from NVIDIA's own plugin.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	plugin "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

// How often the plugin looks whether the kubelet has forgotten it, and tries again when it cannot be reached.
const look = time.Second

type gpus struct {
	plugin.UnimplementedDevicePluginServer
	devices []*plugin.Device
}

func newGPUs(count int) *gpus {
	all := &gpus{}
	for n := range count {
		all.devices = append(all.devices, &plugin.Device{ID: fmt.Sprintf("GPU-fake-%d", n), Health: plugin.Healthy})
	}
	return all
}

func (g *gpus) GetDevicePluginOptions(context.Context, *plugin.Empty) (*plugin.DevicePluginOptions, error) {
	return &plugin.DevicePluginOptions{}, nil
}

// ListAndWatch tells of the devices once: they never change.
func (g *gpus) ListAndWatch(_ *plugin.Empty, stream plugin.DevicePlugin_ListAndWatchServer) error {
	if err := stream.Send(&plugin.ListAndWatchResponse{Devices: g.devices}); err != nil {
		return err
	}
	<-stream.Context().Done()
	return nil
}

func (g *gpus) Allocate(_ context.Context, request *plugin.AllocateRequest) (*plugin.AllocateResponse, error) {
	response := &plugin.AllocateResponse{}
	for _, container := range request.ContainerRequests {
		names := strings.Join(container.DevicesIds, ",")
		response.ContainerResponses = append(response.ContainerResponses, &plugin.ContainerAllocateResponse{
			Envs: map[string]string{"NVIDIA_VISIBLE_DEVICES": names},
		})
	}
	return response, nil
}

// serve offers the devices until the kubelet has removed the socket, as it does with all of them when it starts.
func (g *gpus) serve(socket, resource string) error {
	if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	plugin.RegisterDevicePluginServer(server, g)
	defer server.Stop()
	go server.Serve(listener) // Ends with Stop.
	if err := register(filepath.Base(socket), resource); err != nil {
		return err
	}
	log.Printf("the kubelet knows of %d %s", len(g.devices), resource)
	for range time.Tick(look) {
		if _, err := os.Stat(socket); err != nil {
			return err
		}
	}
	return nil
}

func register(endpoint, resource string) error {
	conn, err := grpc.NewClient("unix://"+plugin.KubeletSocket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_, err = plugin.NewRegistrationClient(conn).Register(ctx, &plugin.RegisterRequest{
		Version: plugin.Version, Endpoint: endpoint, ResourceName: resource,
	})
	return err
}

func main() {
	count := flag.Int("devices", 2, "how many there are")
	resource := flag.String("resource", "nvidia.com/gpu", "what pods ask for")
	flag.Parse()
	all := newGPUs(*count)
	socket := filepath.Join(plugin.DevicePluginPath, "imageflow-fakegpu.sock")
	for {
		log.Print(all.serve(socket, *resource))
		time.Sleep(look)
	}
}
