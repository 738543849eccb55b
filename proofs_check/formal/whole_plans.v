(* Plans that give every token K whole experts and every expert its whole target.

   - They exist if no target exceeds T and the targets sum to K T: give each token in turn the K experts that have most
     places left.
   - A best one has a bias at which no token would rather swap, so it is optimal (certificate_sound). For experts that
     pass tokens around a cycle k -> j -> ... -> k form another plan, whose value is not higher; and where no cycle of
     passes gains, the cheapest way to each expert is a bias. *)

From mathcomp Require Import all_ssreflect ssralg ssrnum ssrint zify.
From alflb Require Import definitions topk.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

(* ------------------------------------------- difference constraints without a negative cycle have a solution *)
Section Potentials.
Variables (R : realDomainType) (E : nat) (e : rel 'I_E) (w : 'I_E -> 'I_E -> R).
Implicit Types (k j : 'I_E) (s : seq 'I_E).

Fixpoint cost k s : R := if s is j :: s' then w k j + cost j s' else 0.

Lemma cost_cat k s1 s2 : cost k (s1 ++ s2) = cost k s1 + cost (last k s1) s2.
Proof. by elim: s1 k => [|j s1 IH] k /=; rewrite ?add0r // IH addrA. Qed.

Lemma cost_cycle k s : uniq (k :: s) -> \sum_(x <- k :: s) w x (next (k :: s) x) = cost k (rcons s k).
Proof.
suff from k0 : uniq (k :: s) -> \sum_(x <- k :: s) w x (next_at x k0 k s) = cost k (rcons s k0) by exact: from.
elim: s k => [|j s IH] k; first by move=> _; rewrite big_seq1 /= eqxx addr0.
rewrite cons_uniq big_cons /= eqxx => /andP[kjs ujs]; congr (_ + _); rewrite -(IH j ujs).
by apply: eq_big_seq => x xjs; case: eqP kjs => // <-; rewrite xjs.
Qed.

Definition trail_to j k s : bool := [&& path e k s, uniq (k :: s) & last k s == j].

Hypothesis no_negative_cycle : forall c, uniq c -> cycle e c -> 0 <= \sum_(k <- c) w k (next c k).

(* The cheapest simple path to each expert. *)
Lemma cheapest j : exists c : R, (exists k s, trail_to j k s /\ cost k s = c) /\
  (forall k s, trail_to j k s -> c <= cost k s).
Proof.
pose P (t : 'I_E * E.-bseq 'I_E) := trail_to j t.1 t.2.
have P0 : P (j, [bseq]) by rewrite /P /trail_to /= eqxx.
case: (Order.TotalTheory.arg_minP (fun t : 'I_E * E.-bseq 'I_E => cost t.1 t.2) P0) => -[k s] /= ks least.
exists (cost k s); split; first by exists k, s.
move=> k' s' t'; have size_s' : (size s' <= E)%N.
  have /and3P[_ /card_uniqP card_s' _] := t'.
  by rewrite ltnW // -[X in (_ < X)%N]card_ord -[(size s').+1]/(size (k' :: s')) -card_s' max_card.
exact: (least (k', Bseq size_s')).
Qed.

Lemma potentials : exists p : 'I_E -> R, forall k j, e k j -> p j <= p k + w k j.
Proof.
have [p cheap] := fin_all_exists cheapest; exists p => k j kj.
have [[x [s [/and3P[xs us /eqP lk] <-]]] _] := cheap k; have [_ least] := cheap j.
have [/splitPl jxs|jxs] := boolP (j \in x :: s); last first.
  have <- : cost x (rcons s j) = cost x s + w k j by rewrite -cats1 cost_cat lk /= addr0.
  apply: least; rewrite /trail_to rcons_path xs lk kj last_rcons eqxx /=.
  by rewrite andbT -cons_uniq -rcons_cons rcons_uniq jxs.
case: jxs xs us lk => s1 s2 lj; rewrite cat_path last_cat lj cost_cat => /andP[xs1 js2] us lk.
have u1 : uniq (x :: s1) by move: us; rewrite -cat_cons cat_uniq => /and3P[].
have u2 : uniq (j :: s2).
  move: us; rewrite -cat_cons cat_uniq => /and3P[_ /hasPn away u2]; rewrite cons_uniq u2 andbT.
  have jx : j \in x :: s1 by rewrite -[X in X \in _]lj mem_last.
  by apply/negP=> /away /negP; apply.
have : 0 <= cost j (rcons s2 j).
  by rewrite -cost_cycle //; apply: no_negative_cycle => //; rewrite /cycle rcons_path js2 lk.
rewrite -cats1 cost_cat lk /= addr0 lj => cycle_ge0.
have le1 : p j <= cost x s1 by apply: least; rewrite /trail_to xs1 u1 lj eqxx.
by apply: le_trans le1 _; rewrite -addrA ler_addl.
Qed.

End Potentials.

(* ------------------------------------------- a best whole assignment has a bias that certifies it *)
Section WholeTargets.
Variables (R : realDomainType) (T E K : nat) (scores : 'I_T -> 'I_E -> R) (l : 'I_E -> nat).
Implicit Types (held : {ffun 'I_T -> {set 'I_E}}) (i : 'I_T) (j k : 'I_E).

Definition whole_plan held : bool :=
  [forall i, #|held i| == K] && [forall k, #|[set i | k \in held i]| == l k].
Definition worth held : R := \sum_i \sum_(k in held i) scores i k.

Section Exchange.
Variable held : {ffun 'I_T -> {set 'I_E}}.
Hypotheses (planned : whole_plan held) (best : forall other, whole_plan other -> worth other <= worth held).

Definition may k j := [exists i, (k \in held i) && (j \notin held i)].

(* The token that loses least by going from k to j. *)
Lemma mover_exists i0 k j : exists i, may k j ->
  [/\ k \in held i, j \notin held i &
      forall i', k \in held i' -> j \notin held i' -> scores i k - scores i j <= scores i' k - scores i' j].
Proof.
have [/existsP[i1 i1P]|_] := boolP (may k j); last by exists i0.
pose may_go i := (k \in held i) && (j \notin held i).
case: (@Order.TotalTheory.arg_minP _ _ _ i1 may_go (fun i => scores i k - scores i j) i1P) => i /andP[ki ji] least.
by exists i => _; split=> // i' ki' ji'; apply: least; rewrite /may_go ki' ji'.
Qed.

Variable mover : 'I_E -> 'I_E -> 'I_T.
Hypothesis moverP : forall k j, may k j ->
  [/\ k \in held (mover k j), j \notin held (mover k j) &
      forall i', k \in held i' -> j \notin held i' ->
      scores (mover k j) k - scores (mover k j) j <= scores i' k - scores i' j].
Let w k j : R := scores (mover k j) k - scores (mover k j) j.

(* Along a cycle of experts each of them passes a token on to the next. *)
Section Cycle.
Variable c : seq 'I_E.
Hypotheses (c_uniq : uniq c) (c_cycle : cycle may c).
Let succ k := next c k.
Let dropped i := [set k in c | mover k (succ k) == i].
Let exchanged : {ffun 'I_T -> {set 'I_E}} := [ffun i => held i :\: dropped i :|: succ @: dropped i].

Let succ_inj : injective succ. Proof. exact: can_inj (prev_next c_uniq). Qed.

Let dropped_held i k : k \in dropped i -> (k \in held i) && (succ k \notin held i).
Proof.
rewrite inE => /andP[kc /eqP <-]; have /moverP[-> -> _] // : may k (succ k).
exact: next_cycle.
Qed.

Lemma exchanged_row (V : zmodType) (f : 'I_E -> V) i :
  \sum_(k in exchanged i) f k = \sum_(k in held i) f k + \sum_(k in dropped i) (f (succ k) - f k).
Proof.
have sub : dropped i \subset held i by apply/subsetP=> k /dropped_held/andP[].
have disjoint : [disjoint held i :\: dropped i & succ @: dropped i].
  rewrite -setI_eq0; apply/eqP/setP=> j; rewrite !inE; apply/negP=> /andP[/andP[_ jh]] /imsetP[k kd jE].
  by move: (dropped_held kd) jh; rewrite -jE => /andP[_ /negPf->].
rewrite ffunE (eq_bigl [predU held i :\: dropped i & succ @: dropped i]); last by move=> k; rewrite inE.
rewrite bigU //= big_imset; last by move=> ? ? _ _; apply: succ_inj.
rewrite [in RHS](big_setID (dropped i)) /= (setIidPr sub) sumrB.
by rewrite [\sum_(k in dropped i) f k + _]addrC addrACA subrr addr0 addrC.
Qed.

Lemma sum_dropped (V : zmodType) (g : 'I_T -> 'I_E -> V) :
  \sum_i \sum_(k in dropped i) g i k = \sum_(k in c) g (mover k (succ k)) k.
Proof.
under eq_bigr do rewrite big_mkcond /=.
rewrite exchange_big [RHS]big_mkcond; apply: eq_bigr => k _ /=.
rewrite (bigD1 (mover k (succ k))) //= big1 => [|i ik]; rewrite !inE ?eqxx ?andbT ?addr0 //.
by rewrite eq_sym (negPf ik) andbF.
Qed.

Lemma exchanged_planned : whole_plan exchanged.
Proof.
have /andP[/forallP rows /forallP columns] := planned; apply/andP; split; [apply/forallP=> i | apply/forallP=> k].
  have := exchanged_row (fun=> 1 : int) i; rewrite !sumr_const subrr mul0rn addr0 => /eqP.
  by rewrite !natz eqz_nat => /eqP ->.
pose f j : int := (j == k)%:R.
have count (h : {ffun 'I_T -> {set 'I_E}}) : \sum_i \sum_(j in h i) f j = #|[set i | k \in h i]|%:Z.
  rewrite -natz -sum1_card natr_sum [RHS]big_mkcond; apply: eq_bigr => i _; rewrite inE.
  have [kh|kh] := boolP (k \in h i).
    by rewrite (bigD1 k) //= big1 ?addr0 /f ?eqxx // => j /andP[_ /negPf->].
  by rewrite big1 // => j jh; rewrite /f; case: eqP kh => // <-; rewrite jh.
rewrite -(eqP (columns k)) -eqz_nat -!count.
under eq_bigr do rewrite exchanged_row.
rewrite big_split sum_dropped sumrB /=.
have -> : \sum_(j in c) f (succ j) = \sum_(j in c) f j.
  by rewrite [RHS](reindex_inj succ_inj); apply: eq_bigl => j; rewrite mem_next.
by rewrite subrr addr0.
Qed.

Lemma no_negative_cycle_of_best : 0 <= \sum_(k <- c) w k (next c k).
Proof.
have := best exchanged_planned; rewrite /worth; under eq_bigr do rewrite exchanged_row.
rewrite big_split sum_dropped /= ger_addl big_uniq //= -oppr_ge0 -sumrN.
by under eq_bigr do rewrite opprB.
Qed.

End Cycle.

Lemma certifying_bias : exists p, forall i j k, k \in held i -> j \notin held i ->
  biased scores p i j <= biased scores p i k.
Proof.
have [p pP] := potentials no_negative_cycle_of_best; exists p => i j k ki ji.
have kj : may k j by apply/existsP; exists i; rewrite ki ji.
have [_ _ least] := moverP kj; rewrite /biased -ler_subr_addl.
apply: le_trans (pP k j kj) (le_trans (ler_add (lexx _) (least i ki ji)) _).
by rewrite addrA [p k + _]addrC.
Qed.

End Exchange.

Theorem best_whole_plan held0 : whole_plan held0 -> exists held p,
  [/\ whole_plan held & forall i j k, k \in held i -> j \notin held i -> biased scores p i j <= biased scores p i k].
Proof.
move=> plan0; case: (Order.TotalTheory.arg_maxP worth plan0) => held planned best.
have [T0|T0] := posnP T.
  by exists held, (fun=> 0); split=> // i; have := ltn_ord i; rewrite [X in (_ < X)%N]T0.
have [mover1 mover1P] := fin_all_exists (fun kj => mover_exists held (Ordinal T0) kj.1 kj.2).
have [p pP] := certifying_bias planned best (mover := fun k j => mover1 (k, j)) (fun k j => mover1P (k, j)).
by exists held, p.
Qed.

End WholeTargets.

(* ------------------------------------------- whole targets within 0 ... T that sum to K T can be met *)
Section Feasible.
Variables (E K : nat).
Implicit Types (k j : 'I_E) (l : 'I_E -> nat).

(* The K experts with most places left: all that need every token are among them, and none that needs no more. *)
Let neediest l : {set 'I_E} := topk K (fun k => (l k)%:Z).

Section NextToken.
Variables (T : nat) (l : 'I_E -> nat).
Hypotheses (l_le : forall k, (l k <= T.+1)%N) (sum_l : (\sum_k l k = K * T.+1)%N).

Lemma enough_experts : (K <= E)%N.
Proof.
rewrite -(leq_pmul2r (ltn0Sn T)) -sum_l -[X in (_ <= X * _)%N]card_ord -sum_nat_const.
exact: leq_sum.
Qed.

Lemma card_neediest : #|neediest l| = K.
Proof. exact/card_topk/enough_experts. Qed.

Lemma neediest_le k j : k \in neediest l -> j \notin neediest l -> (l j <= l k)%N.
Proof. by move=> kS jS; have := beats_le (topk_beats kS jS); rewrite lez_nat. Qed.

Lemma full_neediest k : l k = T.+1 -> k \in neediest l.
Proof.
move=> lk; apply/negPn/negP=> kS; have : (\sum_(j in k |: neediest l) l j <= K * T.+1)%N.
  by rewrite -sum_l [leqRHS](bigID (mem (k |: neediest l))) leq_addr.
have -> : (\sum_(j in k |: neediest l) l j = \sum_(j in k |: neediest l) T.+1)%N.
  apply: eq_bigr => j; rewrite in_setU1 => /predU1P[->//|jS].
  by apply/eqP; rewrite eqn_leq l_le -lk (neediest_le jS kS).
by rewrite sum_nat_const cardsU1 kS card_neediest leq_pmul2r // ltnn.
Qed.

Lemma neediest_gt0 k : k \in neediest l -> (0 < l k)%N.
Proof.
move=> kS; rewrite lt0n; apply/negP=> /eqP lk0.
have K0 : (0 < K)%N by rewrite -card_neediest; apply/card_gt0P; exists k.
have : (K * T.+1 <= \sum_(j in neediest l :\ k) T.+1)%N.
  rewrite -sum_l (bigID (mem (neediest l :\ k))) /= [X in (_ + X)%N]big1 ?addn0; first exact: leq_sum.
  move=> j; rewrite in_setD1 negb_and negbK => /predU1P[->//|jS].
  by apply/eqP; rewrite -leqn0 -lk0 (neediest_le kS jS).
rewrite sum_nat_const leq_pmul2r // => few.
by have := cardsD1 k (neediest l); rewrite kS card_neediest; lia.
Qed.

Definition left k : nat := (l k - (k \in neediest l))%N.

Lemma left_le k : (left k <= T)%N.
Proof.
rewrite /left; have [kS|kS] := boolP (k \in neediest l); first by have := l_le k; lia.
by have := l_le k; rewrite subn0 leq_eqVlt => /predU1P[/full_neediest|//]; rewrite (negPf kS).
Qed.

Lemma sum_left : (\sum_k left k = K * T)%N.
Proof.
apply: (@addnI K); rewrite -mulnS -sum_l -{1}card_neediest -sum1_card big_mkcond -big_split.
apply: eq_bigr => k _ /=; rewrite /left; case: ifP => [kS|_]; last by rewrite subn0.
by have := neediest_gt0 kS; lia.
Qed.

End NextToken.

Theorem whole_plan_exists T l : (forall k, (l k <= T)%N) -> (\sum_k l k = K * T)%N ->
  exists held : {ffun 'I_T -> {set 'I_E}}, whole_plan K l held.
Proof.
elim: T l => [|T IH] l l_le sum_l.
  exists [ffun=> set0]; apply/andP; split; apply/forallP=> x; first by have := ltn_ord x.
  by rewrite (_ : l x = 0%N); [rewrite cards_eq0; apply/eqP/setP=> -[] | apply/eqP; rewrite -leqn0].
have [held /andP[/forallP rows /forallP columns]] := IH _ (left_le l_le sum_l) (sum_left l_le sum_l).
exists [ffun i => if unlift ord0 i is Some i' then held i' else neediest l].
apply/andP; split; [apply/forallP=> i | apply/forallP=> k].
  by rewrite ffunE; case: unliftP => [i' _|_]; rewrite ?(card_neediest l_le sum_l) // (eqP (rows i')).
rewrite -sum1dep_card big_mkcond big_ord_recl /= ffunE unlift_none.
under eq_bigr do rewrite ffunE liftK.
rewrite -big_mkcond sum1dep_card (eqP (columns k)) /left.
by case: ifP => [/(neediest_gt0 l_le sum_l)|_]; [move=> l0; rewrite subnKC | rewrite subn0].
Qed.

End Feasible.
