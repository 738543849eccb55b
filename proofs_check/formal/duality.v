(* Weak duality and certificates of optimality, for any scores, targets L and K:

   - D(p) is at least the value of every feasible assignment, for every bias p;
   - a feasible x that satisfies complementary slackness with some bias p is optimal, and its value is D(p);
   - so is a plan in which every token holds K experts, every expert has its target load, and every token likes each
     expert it holds at least as much as each it does not, scores + bias: this is what the exact solver checks last, so
     a plan that passes is optimal however it was found;
   - exact balance, A(p) = L, is optimal. *)

From mathcomp Require Import all_ssreflect ssralg ssrnum ring.
From alflb Require Import definitions topk.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section Duality.
Variables (R : realDomainType) (T E K : nat) (scores : 'I_T -> 'I_E -> R) (L : 'I_E -> R).
Hypothesis KE : (K <= E)%N.
Implicit Types (p v y : 'I_E -> R) (i : 'I_T) (j k : 'I_E) (x : 'I_T -> 'I_E -> R).
Implicit Types (held : 'I_T -> {set 'I_E}).
Local Notation D := (D K scores L).
Local Notation A := (load K scores).
Local Notation picks := (picks K scores).
Local Notation biased := (biased scores).
Local Notation feasible := (feasible K L).
Local Notation value := (value scores).
Local Notation optimal := (optimal K scores L).

(* The assignment in which token i holds the experts [held i]. *)
Definition plan held i k : R := (k \in held i)%:R.

Lemma sum_indicator (I : finType) (S : {set I}) : \sum_k (k \in S)%:R = #|S|%:R :> R.
Proof. by rewrite -sum1_card natr_sum [RHS]big_mkcond; apply: eq_bigr => k _; case: ifP. Qed.

Lemma sum_times_indicator v (S : {set 'I_E}) : \sum_k v k * (k \in S)%:R = \sum_(k in S) v k.
Proof. by rewrite [RHS]big_mkcond; apply: eq_bigr => k _; case: ifP; rewrite ?mulr1 ?mulr0. Qed.

Lemma plan_row held i : \sum_k plan held i k = #|held i|%:R.
Proof. exact: sum_indicator. Qed.

Lemma plan_column held k : \sum_i plan held i k = #|[set i | k \in held i]|%:R.
Proof. by rewrite -sum_indicator; apply: eq_bigr => i _; rewrite inE. Qed.

Lemma plan_bounds held i k : 0 <= plan held i k <= 1.
Proof. by rewrite ler0n lern1 leq_b1. Qed.

Lemma affinityE p : affinity K scores p = value (plan (picks p)).
Proof. by apply: eq_bigr => i _; rewrite sum_times_indicator. Qed.

(* What a feasible x is worth, with the biases of its columns: D(p) has S_K in the place of the rows. *)
Lemma value_biased p x : feasible x ->
  value x + \sum_k L k * p k = \sum_i \sum_k biased p i k * x i k.
Proof.
case=> _ _ columns; have -> : \sum_k L k * p k = \sum_i \sum_k p k * x i k.
  by rewrite exchange_big; apply: eq_bigr => k _ /=; rewrite -mulr_sumr columns mulrC.
rewrite -big_split; apply: eq_bigr => i _ /=; rewrite -big_split.
by apply: eq_bigr => k _; rewrite /biased mulrDl.
Qed.

(* No fractional row beats the top-K sum. *)
Lemma row_le v y : (forall k, 0 <= y k <= 1) -> \sum_k y k = K%:R -> \sum_k v k * y k <= top_sum K v.
Proof.
move=> y01 sum_y; pose t k : R := (k \in topk K v)%:R.
have [level [above below]] := threshold K v.
have -> : top_sum K v = \sum_k v k * t k by rewrite sum_times_indicator.
have sum_t : \sum_k t k = K%:R by rewrite sum_indicator card_topk.
have shift z : \sum_k z k = K%:R -> \sum_k v k * z k = \sum_k (v k - level) * z k + level * K%:R.
  by move=> <-; rewrite mulr_sumr -big_split; apply: eq_bigr => k _ /=; ring.
rewrite (shift y) // (shift t) // ler_add2r; apply: ler_sum => k _; have /andP[y0 y1] := y01 k.
rewrite /t; have [kt|kt] := boolP (k \in topk K v).
  by apply: ler_wpmul2l; rewrite ?subr_ge0 ?above.
by rewrite mulr0 mulr_le0_ge0 // subr_le0 below.
Qed.

Theorem weak_duality p x : feasible x -> value x <= D p.
Proof.
move=> fx; rewrite ler_subr_addr value_biased //; case: fx => bounds rows _.
by apply: ler_sum => i _; apply: row_le.
Qed.

(* A feasible x whose value is some D(p) is optimal. *)
Lemma no_gap_optimal p x : feasible x -> D p <= value x -> optimal x /\ value x = D p.
Proof.
move=> fx Dx; split; last by apply/eqP; rewrite eq_le Dx weak_duality.
by split=> // z fz; apply: le_trans Dx; apply: weak_duality.
Qed.

(* row_price i stands between what token i holds fully and what it does not hold. *)
Theorem complementary_slackness p x (row_price : 'I_T -> R) : feasible x ->
  (forall i k, 0 < x i k -> row_price i <= biased p i k) ->
  (forall i k, x i k < 1 -> biased p i k <= row_price i) ->
  optimal x /\ value x = D p.
Proof.
move=> fx held others; apply: no_gap_optimal => //.
rewrite ler_subl_addr value_biased //; case: fx => bounds rows _; apply: ler_sum => i _.
set v := biased p i; pose t k : R := (k \in topk K v)%:R.
have -> : top_sum K v = \sum_k v k * t k by rewrite sum_times_indicator.
have sum_t : \sum_k t k = K%:R by rewrite sum_indicator card_topk.
have shift z : \sum_k z k = K%:R -> \sum_k v k * z k = \sum_k (v k - row_price i) * z k + row_price i * K%:R.
  by move=> <-; rewrite mulr_sumr -big_split; apply: eq_bigr => k _ /=; ring.
rewrite (shift t) // (shift (x i)) // ler_add2r; apply: ler_sum => k _.
have /andP[x0 x1] := bounds i k; have /andP[t0 t1] : 0 <= t k <= 1 by rewrite ler0n lern1 leq_b1.
have [low|high|->] := ltgtP (v k) (row_price i); last by rewrite subrr !mul0r.
  have -> : x i k = 0 by apply/eqP; rewrite eq_le x0 andbT leNgt; apply/negP=> /held; rewrite leNgt low.
  by rewrite mulr0 mulr_le0_ge0 // subr_le0 ltW.
have -> : x i k = 1 by apply/eqP; rewrite eq_le x1 leNgt; apply/negP=> /others; rewrite leNgt high.
by apply: ler_wpmul2l => //; rewrite subr_ge0 ltW.
Qed.

(* The exact solver's certificate: row sums, loads, and no token that would rather swap. *)
Theorem certificate_sound p held :
  (forall i, #|held i| = K) -> (forall k, #|[set i | k \in held i]|%:R = L k) ->
  (forall i j k, k \in held i -> j \notin held i -> biased p i j <= biased p i k) ->
  optimal (plan held) /\ value (plan held) = D p.
Proof.
move=> rows columns content.
have fx : feasible (plan held).
  by split=> *; rewrite ?plan_bounds ?plan_row ?plan_column ?rows ?columns.
apply: no_gap_optimal => //; rewrite ler_subl_addr value_biased //; apply: ler_sum => i _.
rewrite sum_times_indicator /top_sum (big_setID (held i)) [leRHS](big_setID (topk K (biased p i))) /=.
rewrite setIC ler_add2l; apply: sum_le_pairwise => [|a b].
  apply: (@addnI #|topk K (biased p i) :&: held i|).
  by rewrite cardsID setIC cardsID rows card_topk.
by rewrite !inE => /andP[ah _] /andP[_ bh]; apply: content.
Qed.

Theorem exact_balance_optimal p : (forall k, (A p k)%:R = L k) ->
  optimal (plan (picks p)) /\ affinity K scores p = D p.
Proof.
move=> balanced; rewrite affinityE; apply: certificate_sound => // [i|i j k kp jp].
  exact: card_topk.
exact/beats_le/(topk_beats kp jp).
Qed.

End Duality.
