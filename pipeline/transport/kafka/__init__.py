"""The transport over a real Apache Kafka, on aiokafka's client and group membership.

``transport`` puts the pieces together; ``reader`` is the group member, ``columns`` what it fetches; ``writer`` the
lane's transactions, ``publisher`` what goes outside of them, ``sender`` the batches of both, ``records`` their bytes;
``logs`` ranges and changelogs, ``dead_owners`` who holds them back; ``topics`` what must exist before anything runs,
``topic_watch`` whether it still does; ``client`` one bounded connection to the cluster, ``wire`` and ``inquiries`` the
requests aiokafka lacks.

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
    record      DefaultRecordBatchBuilder, MemoryRecords, util.calc_crc32c; codec
"""
