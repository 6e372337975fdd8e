"""The transport over a real Apache Kafka, on aiokafka's client and group membership.

``transport`` puts the pieces together. To read: ``reader`` is the group member, ``columns`` what it fetches,
``pacing`` when; ``logs`` ranges and changelogs, ``fetching`` their bytes, ``stretches`` their columns. To write:
``writer`` the lane's transactions, ``publisher`` what goes outside of them, ``sender`` the batches of both,
``records`` their bytes. To ask: ``groups`` offsets and members, ``dead_owners`` who holds others back, ``topics`` what
must exist before anything runs, ``topic_watch`` whether it still does. Beneath: ``client`` is one bounded connection
to the cluster; ``wire``, ``inquiries`` and ``rows`` the requests that aiokafka lacks.

What is used of aiokafka beyond its public interface (``tests/kafka/test_insides.py`` holds it)::

    client      AIOKafkaClient: _metadata_update (overridden), _conns, _get_conn, send, coordinator_lookup, ready,
                cluster, add_topic, set_topics, force_metadata_update; ConnectionGroup, CoordinationType
    fetcher     Fetcher: _records, _proc_fetch_request (overridden), _notify, _wait_consume_future, seek_to,
                error_future; FetchResult: _partition_records, getall, has_more; FetchError.check_raise;
                PartitionRecords: _unpack_records (overridden), _consume_aborted_up_to, _contains_abort_marker,
                _aborted_producers, _aborted_transactions, _records, _records_iterator, _tp, _check_crcs,
                _isolation_level
    coordinator GroupCoordinator: generation, member_id, _do_rejoin_group, _send_req, _push_error_to_user (overridden),
                _coordination_task, _heartbeat_task, _commit_refresh_task, _closing
    state       SubscriptionState: subscribe, pause, resume, subscription.assignment, reassignment_in_progress
    protocol    protocol.api, protocol.types and the requests of protocol.{admin,fetch,offset,produce,transaction}
    record      DefaultRecordBatch, DefaultRecordBatchBuilder, MemoryRecords, control_record, util.calc_crc32c; codec
"""
