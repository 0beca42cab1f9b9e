// Events of the CloudEvents SDK through Kafka: `write BOOTSTRAP TOPIC`, or `read BOOTSTRAP TOPIC COUNT`.
//
// What is read is printed as JSON, an event a line, in the form that sdk_kafka.py prints too.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/IBM/sarama"
	"github.com/cloudevents/sdk-go/protocol/kafka_sarama/v2"
	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/cloudevents/sdk-go/v2/binding"
)

const patience = 60 * time.Second

func main() {
	log.SetFlags(0)
	brokers, topic := strings.Split(os.Args[2], ","), os.Args[3]
	config := sarama.NewConfig()
	config.Version = sarama.V2_8_0_0
	config.Consumer.IsolationLevel = sarama.ReadCommitted
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var err error
	if os.Args[1] == "write" {
		err = write(ctx, brokers, config, topic)
	} else {
		var count int
		if count, err = strconv.Atoi(os.Args[4]); err == nil {
			err = read(ctx, brokers, config, topic, count)
		}
	}
	if err != nil {
		log.Fatal(err)
	}
}

func write(ctx context.Context, brokers []string, config *sarama.Config, topic string) error {
	sender, err := kafka_sarama.NewSender(brokers, config, topic)
	if err != nil {
		return err
	}
	defer sender.Close(ctx)
	client, err := cloudevents.NewClient(sender)
	if err != nil {
		return err
	}
	modes := map[string]context.Context{
		"binary":     binding.WithForceBinary(ctx),
		"structured": binding.WithForceStructured(ctx),
	}
	for mode, ctx := range modes {
		for _, kind := range []string{"json", "bytes"} {
			event := cloudevents.NewEvent()
			event.SetID("go-" + kind + "-" + mode)
			event.SetType("com.example.sdk")
			event.SetSource("https://shop.example/a%20b")
			event.SetSubject("Grüße 100%.jpg")
			event.SetTime(time.Date(2026, 11, 24, 10, 0, 0, 123_000_000, time.UTC))
			event.SetExtension("colour", "grün")
			event.SetExtension("partitionkey", "order 7")
			if kind == "json" {
				err = event.SetData("application/json", map[string]any{"text": "Grüße", "n": 7})
			} else {
				err = event.SetData("application/octet-stream", []byte{0, 255, 7})
			}
			if err != nil {
				return err
			}
			if result := client.Send(ctx, event); cloudevents.IsUndelivered(result) {
				return fmt.Errorf("%s was not written: %w", event.ID(), result)
			}
		}
	}
	return nil
}

func read(ctx context.Context, brokers []string, config *sarama.Config, topic string, count int) error {
	consumer, err := sarama.NewConsumer(brokers, config)
	if err != nil {
		return err
	}
	defer consumer.Close()
	partitions, err := consumer.Partitions(topic)
	if err != nil {
		return err
	}
	records := make(chan *sarama.ConsumerMessage)
	for _, partition := range partitions {
		from, err := consumer.ConsumePartition(topic, partition, sarama.OffsetOldest)
		if err != nil {
			return err
		}
		go func() {
			for record := range from.Messages() {
				select {
				case records <- record:
				case <-ctx.Done():
					return
				}
			}
		}()
	}
	for ; count > 0; count-- {
		select {
		case record := <-records:
			if err := show(ctx, record); err != nil {
				return fmt.Errorf("partition %d, offset %d: %w", record.Partition, record.Offset, err)
			}
		case <-ctx.Done():
			return fmt.Errorf("%d records are missing", count)
		}
	}
	return nil
}

func show(ctx context.Context, record *sarama.ConsumerMessage) error {
	event, err := binding.ToEvent(ctx, kafka_sarama.NewMessageFromConsumerMessage(record))
	if err != nil {
		return err
	}
	if err := event.Validate(); err != nil {
		return err
	}
	var data any = map[string][]byte{"base64": event.Data()}
	if event.DataContentType() == "application/json" {
		data = json.RawMessage(event.Data())
	}
	extensions := event.Extensions()
	// The SDK adds where a record was.
	for _, name := range []string{"kafkaoffset", "kafkapartition", "kafkatopic"} {
		delete(extensions, name)
	}
	seen := map[string]any{
		"id": event.ID(), "type": event.Type(), "source": event.Source(), "subject": event.Subject(),
		"datacontenttype": event.DataContentType(), "time": event.Time().UnixMilli(),
		"key": string(record.Key), "extensions": extensions, "data": data,
	}
	return json.NewEncoder(os.Stdout).Encode(seen)
}
